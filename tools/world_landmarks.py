"""Landmarks, by hand: the city and the country where each one stands, as steps that lead to a city or a country."""

from __future__ import annotations

from typing import Any

from world_names import city_aliases, country_aliases
from world_sources import Row, cities, row

from editkit.facts import normalise

# Country code, then landmarks with the city they stand in, or "" where that is no city of the fact base.
LANDMARKS: dict[str, dict[str, str]] = {
    "AE": {"the Burj Khalifa": "Dubai"},
    "AR": {"the Teatro Colón": "Buenos Aires"},
    "AT": {"Schönbrunn Palace": "Vienna", "the Hofburg": "Vienna"},
    "AU": {"Uluru": "", "Bondi Beach": "Sydney"},
    "BE": {"the Atomium": "Brussels", "Manneken Pis": "Brussels"},
    "BR": {"Copacabana Beach": "Rio de Janeiro", "the statue of Christ the Redeemer": "Rio de Janeiro"},
    "CA": {"the CN Tower": "Toronto"},
    "CL": {"Torres del Paine": ""},
    "CN": {"the Forbidden City": "Beijing", "the Terracotta Army": "Xi’an"},
    "CZ": {"Charles Bridge": "Prague", "Wenceslas Square": "Prague"},
    "DE": {"the Brandenburg Gate": "Berlin", "Neuschwanstein Castle": "", "the Reichstag": "Berlin"},
    "DK": {"the Tivoli Gardens": "Copenhagen"},
    "EG": {"Tahrir Square": "Cairo", "the Valley of the Kings": "", "Abu Simbel": ""},
    "ES": {"the Alhambra": "", "the Sagrada Família": "Barcelona", "the Prado Museum": "Madrid"},
    "ET": {"the rock churches of Lalibela": ""},
    "FI": {"the fortress of Suomenlinna": "Helsinki"},
    "FR": {"the Eiffel Tower": "Paris", "the Louvre": "Paris", "the Arc de Triomphe": "Paris", "Mont Saint-Michel": ""},
    "GB": {
        "Big Ben": "London", "Stonehenge": "", "Buckingham Palace": "London", "Loch Ness": "",
        "Trafalgar Square": "London",
    },
    "GR": {"the Acropolis": "Athens", "the Parthenon": "Athens", "Delphi": ""},
    "GT": {"the Maya ruins of Tikal": ""},
    "HU": {"Fisherman's Bastion": "Budapest"},
    "ID": {"the temple of Borobudur": ""},
    "IE": {"the Cliffs of Moher": ""},
    "IN": {"the Taj Mahal": "", "the Gateway of India": "Mumbai", "the Golden Temple": ""},
    "IR": {"the ruins of Persepolis": ""},
    "IQ": {"the ruins of Babylon": ""},
    "IS": {"Hallgrímskirkja": ""},
    "IT": {
        "the Colosseum": "Rome", "the Leaning Tower of Pisa": "", "the Trevi Fountain": "Rome", "La Scala": "Milan",
        "Mount Vesuvius": "",
    },
    "JO": {"Petra": "", "Wadi Rum": ""},
    "JP": {"Mount Fuji": "", "the Fushimi Inari shrine": "Kyoto", "the Shibuya Crossing": "Tokyo"},
    "KE": {"the Maasai Mara": ""},
    "KH": {"Angkor Wat": ""},
    "KR": {"Gyeongbokgung Palace": "Seoul"},
    "LB": {"the ruins of Baalbek": ""},
    "LY": {"the ruins of Leptis Magna": ""},
    "ML": {"the mosques of Timbuktu": ""},
    "MM": {"the Shwedagon Pagoda": "Yangon"},
    "MX": {"Chichen Itza": "", "the pyramids of Teotihuacan": ""},
    "MY": {"the Petronas Towers": "Kuala Lumpur"},
    "NG": {"Aso Rock": "Abuja"},
    "NL": {"the Rijksmuseum": "Amsterdam", "the Anne Frank House": "Amsterdam"},
    "NO": {"the Geirangerfjord": "", "the Holmenkollen ski jump": "Oslo"},
    "NP": {"Lumbini": ""},
    "NZ": {"Milford Sound": ""},
    "PE": {"Machu Picchu": "", "the Nazca Lines": ""},
    "PH": {"the Chocolate Hills": ""},
    "PK": {"Mohenjo-daro": "", "the Badshahi Mosque": "Lahore"},
    "PL": {"Wawel Castle": "Krakow", "the Auschwitz memorial": ""},
    "PT": {"Belém Tower": "Lisbon"},
    "RO": {"Bran Castle": ""},
    "RU": {"the Kremlin": "Moscow", "the Hermitage Museum": "Saint Petersburg", "Red Square": "Moscow"},
    "SA": {"the Kaaba": "Mecca"},
    "SE": {"the Vasa Museum": "Stockholm"},
    "SG": {"Marina Bay Sands": ""},
    "SY": {"the ruins of Palmyra": ""},
    "TH": {"the temple of Wat Arun": "Bangkok", "the ruins of Ayutthaya": ""},
    "TN": {"the ruins of Carthage": ""},
    "TR": {"Hagia Sophia": "Istanbul", "the Blue Mosque": "Istanbul", "Cappadocia": ""},
    "TZ": {"Mount Kilimanjaro": "", "the Serengeti": ""},
    "US": {"the Grand Canyon": "", "the Statue of Liberty": "", "Mount Rushmore": ""},
    "VE": {"Angel Falls": ""},
    "VN": {"Ha Long Bay": ""},
    "ZA": {"Table Mountain": "Cape Town"},
}  # fmt: skip
AMERICAN_LANDMARKS = {
    "Alcatraz": "San Francisco", "the Golden Gate Bridge": "San Francisco", "the Alamo": "San Antonio",
    "Willis Tower": "Chicago", "Wrigley Field": "Chicago", "Millennium Park": "Chicago",
    "the Hollywood Sign": "Los Angeles", "the Gateway Arch": "St. Louis", "the Space Needle": "Seattle",
    "Pike Place Market": "Seattle", "Fenway Park": "Boston", "Faneuil Hall": "Boston",
    "the Liberty Bell": "Philadelphia", "Independence Hall": "Philadelphia", "the French Quarter": "New Orleans",
    "Graceland": "Memphis", "the Rock and Roll Hall of Fame": "Cleveland", "Balboa Park": "San Diego",
    "Coors Field": "Denver", "Churchill Downs": "Louisville", "the Country Music Hall of Fame": "Nashville",
    "the National Civil Rights Museum": "Memphis", "the Astrodome": "Houston", "the Henry Ford Hospital": "Detroit",
    "Camden Yards": "Baltimore",
}  # fmt: skip


def landmarks(states: dict[str, dict[str, Any]]) -> list[Row]:
    """Landmarks with their country and city, and American ones with their city, as popular as that place."""
    people = {(city["countrycode"], city["name"]): city["population"] for city in reversed(cities())}
    rows = []
    for code, found in LANDMARKS.items():
        country = states[code]
        for name, city in found.items():
            rows.append(_row("landmark_country", name, country["called"], country["population"]))
            if city:
                rows.append(_row("landmark_city", name, city, people[code, city]))
    american = AMERICAN_LANDMARKS.items()
    return rows + [_row("landmark_us_city", name, city, people["US", city]) for name, city in american]


def _row(relation: str, landmark: str, place: str, people: int) -> Row:
    key = normalise(landmark.removeprefix("the ")).replace(" ", "-")
    aliases = country_aliases(place) if relation == "landmark_country" else city_aliases(place)
    return row(relation, key, landmark, place, people, aliases, (landmark.removeprefix("the "),))
