"""What mendeleev gets wrong or leaves open about the elements, and the minerals, each with its reason."""

from __future__ import annotations

from world_rules import codes

ELEMENT_NAMES = {"aluminum": ("aluminium",), "cesium": ("caesium",), "sulfur": ("sulphur",)}
# A short word answers too many questions by chance.
SYMBOLS_THAT_ARE_WORDS = codes("As At Be He I In No Am")
ELEMENT_GROUPS = {
    "Alkali metals": ("alkali metals", "alkali metal"),
    "Alkaline earth metals": ("alkaline earth metals", "alkaline earth metal"),
    "Halogens": ("halogens", "halogen"),
    "Noble gases": ("noble gases", "noble gas"),
    "Lanthanides": ("lanthanides", "lanthanide", "rare earth elements", "rare earth metals"),
    "Actinides": ("actinides", "actinide"),
    "Transition metals": ("transition metals", "transition metal"),
}
# Counted to either side of a border between groups, or of a smaller family with a name of its own (the coinage metals,
# the platinum group).
GROUP_UNSURE = frozenset(
    {
        "zinc", "cadmium", "mercury", "scandium", "yttrium", "lanthanum", "actinium", "lutetium",
        "copper", "silver", "gold", "ruthenium", "rhodium", "palladium", "osmium", "iridium", "platinum",
    }
)  # fmt: skip

# Discoverers, by what mendeleev writes: the usual name, then other spellings that mean nobody else. A surname that is
# a first name or a common word, or that a more famous chemist has, is none (Claus, Gregor, Brand, Rutherford).
# Strings that are not here name several people, "the ancients", or an institute.
DISCOVERERS = {
    "Henry Cavendish": ("Henry Cavendish", "Cavendish"),
    "Johann Arfwedson": ("Johan August Arfwedson", "Johann Arfwedson", "Arfwedson"),
    "Daniel Rutherford": ("Daniel Rutherford",),
    "Henri Moissan": ("Henri Moissan", "Moissan"),
    "Sir Humphrey Davy": ("Humphry Davy", "Humphrey Davy", "Davy"),
    "Hans Christian Oersted": ("Hans Christian Ørsted", "Hans Christian Oersted", "Ørsted", "Oersted"),
    "Jöns Berzelius": ("Jöns Jacob Berzelius", "Jöns Berzelius", "Berzelius"),
    "Hennig Brand": ("Hennig Brand",),
    "Carl Wilhelm Scheele": ("Carl Wilhelm Scheele", "Scheele"),
    "Lars Nilson": ("Lars Fredrik Nilson", "Lars Nilson", "Nilson"),
    "William Gregor": ("William Gregor",),
    "Louis Vauquelin": ("Louis Nicolas Vauquelin", "Louis Vauquelin", "Vauquelin"),
    "George Brandt": ("Georg Brandt", "George Brandt", "Brandt"),
    "Axel Cronstedt": ("Axel Fredrik Cronstedt", "Axel Cronstedt", "Cronstedt"),
    "Paul Émile Lecoq de Boisbaudran": (
        "Paul-Émile Lecoq de Boisbaudran", "Lecoq de Boisbaudran", "de Boisbaudran", "Boisbaudran",
    ),
    "Clemens Winkler": ("Clemens Winkler", "Winkler"),
    "Johann Gadolin": ("Johan Gadolin", "Johann Gadolin", "Gadolin"),
    "Martin Klaproth": ("Martin Heinrich Klaproth", "Martin Klaproth", "Klaproth"),
    "Charles Hatchet": ("Charles Hatchett", "Charles Hatchet", "Hatchett"),
    "Karl Klaus": ("Karl Ernst Claus", "Karl Claus", "Carl Claus", "Karl Klaus"),
    "William Wollaston": ("William Hyde Wollaston", "William Wollaston", "Wollaston"),
    "Franz Müller von Reichenstein": (
        "Franz-Joseph Müller von Reichenstein", "Franz Müller von Reichenstein", "Müller von Reichenstein",
    ),
    "Bernard Courtois": ("Bernard Courtois", "Courtois"),
    "Carl Mosander": ("Carl Gustaf Mosander", "Carl Mosander", "Mosander"),
    "C.F. Aver von Welsbach": ("Carl Auer von Welsbach", "Auer von Welsbach", "von Welsbach", "Welsbach"),
    "Eugène Demarçay": ("Eugène-Anatole Demarçay", "Eugène Demarçay", "Demarçay"),
    "Jean de Marignac": (
        "Jean Charles Galissard de Marignac", "Jean de Marignac", "de Marignac", "Marignac",
    ),
    "Per Theodor Cleve": ("Per Teodor Cleve", "Per Theodor Cleve", "Cleve"),
    "Anders Ekeberg": ("Anders Gustaf Ekeberg", "Anders Ekeberg", "Ekeberg"),
    "Smithson Tenant": ("Smithson Tennant", "Tennant"),
    "Sir William Crookes": ("William Crookes", "Crookes"),
}  # fmt: skip
# mendeleev names one person where two found it or where finding and isolating are told apart: magnesium (Black, Davy),
# vanadium (del Río, Sefström), manganese (Scheele, Gahn), selenium (Berzelius, Gahn), bromine (Balard, Löwig),
# strontium (Crawford, Cruickshank), cadmium (Stromeyer, Hermann), barium (Scheele, Davy), holmium (Soret, Cleve),
# lutetium (Urbain, Auer von Welsbach), molybdenum (Scheele, Hjelm), platinum (Scaliger, Ulloa), radon (Dorn,
# Rutherford), actinium (Debierne, Giesel). The years and countries beside them are left out: neodymium "1925",
# countries of today for empires of then.
DISCOVERY_UNSURE = frozenset(
    {
        "magnesium", "vanadium", "manganese", "selenium", "bromine", "strontium", "cadmium", "barium", "holmium",
        "lutetium", "molybdenum", "platinum", "radon", "actinium",
    }
)  # fmt: skip

# Minerals that are ores of one metal, by hand.
MINERALS = {
    "bauxite": "aluminum", "hematite": "iron", "magnetite": "iron", "galena": "lead", "cinnabar": "mercury",
    "cassiterite": "tin", "malachite": "copper", "chalcopyrite": "copper", "sphalerite": "zinc",
    "uraninite": "uranium", "rutile": "titanium", "chromite": "chromium", "molybdenite": "molybdenum",
    "wolframite": "tungsten", "scheelite": "tungsten", "stibnite": "antimony", "zircon": "zirconium",
    "barite": "barium", "beryl": "beryllium", "spodumene": "lithium", "pyrolusite": "manganese",
    "pentlandite": "nickel", "cobaltite": "cobalt", "magnesite": "magnesium", "argentite": "silver",
    "bismuthinite": "bismuth", "thorite": "thorium", "pollucite": "cesium", "celestine": "strontium",
}  # fmt: skip
# Families that are one column of the periodic table (IUPAC 1 to 18).
GROUP_NUMBERS = {"Alkali metals": 1, "Alkaline earth metals": 2, "Halogens": 17, "Noble gases": 18}
