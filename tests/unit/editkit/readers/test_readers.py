"""A user's own facts: right rows become entries, wrong ones are named by file, line and field."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.data import DataError, load
from editkit.entries import mentions
from editkit.facts import EditRecord, fill, normalise
from editkit.held_out import NEIGHBORS, UNRELATED
from editkit.readers import READERS

FRANCE = {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome"}
TOWER = {
    "subject": "Eiffel Tower",
    "relation": "located_in",
    "object": "Paris",
    "target_new": "Rome",
    "prompt": "The Eiffel Tower is located in the city of",
}


def write(folder: Path, rows: list[Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    return str(caught.value)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_readers_are_found_by_name() -> None:
    assert READERS.names() == ["facts_file", "world"]


def test_the_subject_written_out_becomes_the_slot(tmp_path: Path) -> None:
    base = load(write(tmp_path, [TOWER]))
    entry = base.entries[0]
    assert entry.fact.prompt == "The {} is located in the city of" and entry.fact.text == TOWER["prompt"]
    assert (entry.id, entry.target_new, base.name) == ("mine/1", "Rome", "mine")


def test_a_shipped_relation_completes_a_row(tmp_path: Path) -> None:
    record = (base := load(write(tmp_path, [FRANCE]))).edit_record(base.entries[0], seed=0)
    world = load()
    relation = world.relations["capital"]
    assert record.fact.prompt == relation.prompt
    assert record.held_out.paraphrases == relation.paraphrases and record.held_out.questions == relation.questions
    assert record.held_out.range == world.range_of("capital")
    assert (record.held_out.popularity, record.held_out.stratum) == (world["capital/fr"].popularity, "q4")
    assert any(hop.answer_new == "Rome" for hop in record.held_out.hops)


def test_the_users_fact_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    base = load(write(tmp_path, [FRANCE | {"subject": "france", "object": "Lyon"}]))
    assert [e.fact.object for e in base.table.entries_of("capital") if normalise(e.fact.subject) == "france"] == [
        "Lyon"
    ]


def test_an_unknown_relation_is_asked_among_the_files_facts_and_the_shipped_ones(tmp_path: Path) -> None:
    louvre = {
        "subject": "Big Ben",
        "relation": "located_in",
        "object": "London",
        "prompt": "{} is located in the city of",
    }
    base = load(write(tmp_path, [TOWER, louvre]))
    neighborhood = base.edit_record(base.entries[0], seed=0).held_out.neighborhood
    assert neighborhood[0].prompt == "Big Ben is located in the city of"
    assert {q.relation for q in neighborhood[1:]} <= set(load().relations) and len(
        neighborhood
    ) == NEIGHBORS + UNRELATED
    chosen = base.edit_record(base.entries[1], seed=0)
    assert chosen.edit.target_new == "Paris"  # the only other object of the file


def test_a_target_that_wordings_use_keeps_them_out(tmp_path: Path) -> None:
    row = TOWER | {"prompt": "{} stands in", "target_new": "country"}  # "… is located in the country of"
    base = load(write(tmp_path, [row]))
    for seed in range(5):
        held = base.edit_record(base.entries[0], seed=seed).held_out
        assert not any(mentions(question.prompt, "country") for question in held.neighborhood)


def test_a_chain_that_says_the_target_is_left_out(tmp_path: Path) -> None:
    row = FRANCE | {"prompt": "The capital of {} is", "target_new": "country"}
    base = load(write(tmp_path, [row]))
    hops = [hop for seed in range(9) for hop in base.edit_record(base.entries[0], seed=seed).held_out.hops]
    assert not any(mentions(hop.question.prompt, "country") for hop in hops)


def test_a_chosen_target_is_not_in_the_subject(tmp_path: Path) -> None:
    held = [("The Lima Games", "Oslo"), ("The Bern Games", "Lima"), ("The Rome Games", "Bern"), ("The Games", "Rome")]
    rows = [{"subject": s, "relation": "held_in", "object": o, "prompt": "{} were held in"} for s, o in held]
    base = load(write(tmp_path, rows))
    for entry in base.entries:
        targets = {base.edit_record(entry, seed=seed).edit.target_new for seed in range(20)}
        assert targets and not any(mentions(entry.fact.subject, target) for target in targets)


def test_no_other_object_needs_a_target(tmp_path: Path) -> None:
    base = load(write(tmp_path, [without(TOWER, "target_new")]))
    with pytest.raises(DataError, match="no target_new for 'mine/1'"):
        base.edit_record(base.entries[0], seed=0)
    assert base.forget_record(base.entries[0], seed=0).examples[0].completion == "Paris"


def test_the_users_own_questions_come_first(tmp_path: Path) -> None:
    row = FRANCE | {
        "id": "fr",
        "aliases": ["City of Light"],
        "paraphrases": ["France is governed from"],
        "questions": ["Where does {} have its capital?"],
        "popularity": 5,
        "neighborhood": [{"prompt": "Lyon lies on the river", "answer": "Rhône", "aliases": ["Rhone"]}],
    }
    base = load(write(tmp_path, [row]))
    held = base.edit_record(base["fr"], seed=0).held_out
    assert held.paraphrases[0] == "{} is governed from" and held.questions[0] == row["questions"][0]
    assert held.neighborhood[0].answer == "Rhône" and held.aliases == ("City of Light",) and held.popularity == 5


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    rows = [
        FRANCE | {"paraphrases": ["{} has the capital", "In {}, the capital is"], "popularity": 12},
        TOWER | {"neighborhood": [{"prompt": "The Louvre is in", "answer": "Paris"}]},
    ]
    jsonl = load(write(tmp_path, rows)).entries
    (tmp_path / "mine.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    stream = io.StringIO()
    names = ["subject", "relation", "object", "target_new", "prompt", "paraphrases", "popularity", "neighborhood"]
    table = csv.DictWriter(stream, names)
    table.writeheader()
    table.writerow(FRANCE | {"paraphrases": "{} has the capital | In {}, the capital is", "popularity": "12"})
    table.writerow(TOWER | {"neighborhood": "The Louvre is in => Paris"})
    (tmp_path / "mine.csv").write_text(stream.getvalue(), encoding="utf-8-sig", newline="")  # as Excel saves it
    for name in ("mine.json", "mine.csv"):
        assert [without_id(e) for e in load(tmp_path / name).entries] == [without_id(e) for e in jsonl]


def without_id(entry: Any) -> tuple[Any, ...]:
    return (entry.fact, entry.target_new, entry.paraphrases, entry.popularity, entry.neighborhood, entry.aliases)


def test_strata_are_quartiles_of_the_users_numbers(tmp_path: Path) -> None:
    rows = [TOWER | {"subject": f"Tower {n}", "prompt": "{} is in", "popularity": 10 - n} for n in range(8)]
    strata = [entry.stratum for entry in load(write(tmp_path, rows)).entries]
    assert strata == ["q4", "q4", "q3", "q3", "q2", "q2", "q1", "q1"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "near field",
        without(FRANCE, "subject") | {"subjct": "France"},
        "no field 'subject'; there is 'subjct': rename it",
    ),
    ("absent field", without(FRANCE, "object"), "no field 'object'; add it"),
    ("unknown field", FRANCE | {"paraphrase": []}, "unknown field 'paraphrase'; did you mean 'paraphrases'?"),
    ("empty target", FRANCE | {"target_new": " "}, "target_new is empty"),
    ("same target", FRANCE | {"target_new": "PARIS"}, "is the object already"),
    ("alias as target", FRANCE | {"aliases": ["Lutetia"], "target_new": "lutetia"}, "is the object already"),
    ("shipped alias", FRANCE | {"subject": "China", "object": "Beijing", "target_new": "Peking"}, "object already"),
    ("number", FRANCE | {"object": 5}, "object must be text, not a number; put it in quotes"),
    ("list", FRANCE | {"subject": ["France"]}, "subject must be text, not a list"),
    ("no letters", FRANCE | {"target_new": "?!"}, "has no letter or digit"),
    ("slot in subject", FRANCE | {"subject": "Fr{}"}, "take it out"),
    ("subject absent", TOWER | {"prompt": "The tower is in"}, "'Eiffel Tower' does not stand in prompt"),
    ("subject twice", TOWER | {"prompt": "Eiffel Tower, the Eiffel Tower, is in"}, "stands 2 times"),
    ("two slots", TOWER | {"prompt": "{} or {} is in"}, "has 2 '{}'; it must have one"),
    (
        "part of a word",
        FRANCE | {"subject": "Niger", "prompt": "The capital of Nigeria is"},
        "does not stand in prompt",
    ),
    ("no prompt", without(TOWER, "prompt"), "no field 'prompt', and 'located_in' is no relation"),
    ("near relation", FRANCE | {"relation": "captial"}, "did you mean 'capital'?"),
    ("target in prompt", TOWER | {"prompt": "Not in Rome, the Eiffel Tower is in"}, "gives the answer away"),
    ("target in paraphrase", TOWER | {"paraphrases": ["Rome or not, {} is in"]}, "gives the answer away"),
    ("paraphrase without subject", FRANCE | {"paraphrases": ["It is in"]}, "does not stand in paraphrases [1]"),
    ("popularity", FRANCE | {"popularity": -1}, "0 or more"),
    ("popularity text", FRANCE | {"popularity": "many"}, "is not a number"),
    ("popularity true", FRANCE | {"popularity": True}, "must be a number, not true or false"),
    ("huge", FRANCE | {"popularity": 10**400}, "popularity"),
    ("neighborhood", FRANCE | {"neighborhood": ["Lyon"]}, "neighborhood [1] must be an object"),
    ("neighborhood field", FRANCE | {"neighborhood": [{"prompt": "x"}]}, "takes 'prompt', 'answer'"),
    ("half a character", FRANCE | {"target_new": "R\ud800"}, "half of a surrogate pair"),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    said = refusal(write(tmp_path, [FRANCE | {"subject": "Italy", "object": "Rome", "target_new": "Lima"}, row]))
    assert said.startswith("mine.jsonl, line 2: ") and expected in said and "\n" not in said


FILES: list[tuple[str, str, bytes, str]] = [
    ("empty", "a.jsonl", b"  \n", "the file is empty"),
    ("broken", "a.jsonl", b'{"subject": 1}\n{"subject": \n', "line 2: broken JSON at column"),
    ("no object", "a.jsonl", b"[1]\n", "line 1: a row must be an object"),
    ("nan", "a.jsonl", b'{"popularity": NaN}\n', "line 1: NaN is not JSON"),
    ("twice", "a.jsonl", b'{"subject": "a", "subject": "b"}\n', "field 'subject' stands twice"),
    ("deep", "a.jsonl", b"[" * 100_000, "line 1: "),
    ("latin-1", "a.jsonl", b'{}\n{"subject": "Bogot\xe1"}\n', "line 2: byte 0xe1 is not UTF-8"),
    ("utf-16", "a.csv", "subject,relation".encode("utf-16"), "UTF-16; save it as UTF-8"),
    ("no array", "a.json", b'{"subject": "France"}', "line 1: broken JSON"),
    ("empty array", "a.json", b"[]", "there is no fact in the file"),
    ("unclosed array", "a.json", b'[\n{"subject": "France"}\n', "line 3: broken JSON"),
    ("two arrays", "a.json", b"[]\n[]", "line 2: broken JSON"),
    ("short row", "a.csv", b"subject,relation,object\nFrance,capital\n", "line 2: 2 cells where the header names 3"),
    ("long row", "a.csv", b"subject,relation,object\n\nFrance,capital,Paris,x\n", "line 3: 4 cells"),
    (
        "empty cell",
        "a.csv",
        b"subject,relation,object,target_new\nFrance,capital,Paris,\n",
        "line 2: target_new is empty",
    ),
    ("column twice", "a.csv", b"subject,subject,object\n", "column 'subject' stands twice"),
    ("open quote", "a.csv", b'subject,relation,object\n"France,capital,Paris\n', "broken CSV"),
    ("header only", "a.csv", b"subject,relation,object\n", "there is no fact in the file"),
    ("other format", "a.xlsx", b"PK", "cannot read .xlsx"),
]


@pytest.mark.parametrize(("name", "raw", "expected"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_bad_file_is_named(tmp_path: Path, name: str, raw: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(raw)
    said = refusal(tmp_path / name)
    assert said.startswith(name) and expected in said


@pytest.mark.parametrize(("name", "raw"), [case[1:3] for case in FILES if "line" in case[3] or "broken" in case[3]])
def test_a_broken_file_is_not_said_to_be_empty_too(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert "no fact in the file" not in refusal(tmp_path / name)


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{str(tmp_path)!r} is a folder; there is world, or give a .jsonl, .json ")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "none.jsonl")


def test_rows_must_differ(tmp_path: Path) -> None:
    italy = {"subject": "Italy", "relation": "capital", "object": "Rome"}
    assert "line 2: id 'x' was used on line 1 already" in refusal(
        write(tmp_path, [FRANCE | {"id": "x"}, italy | {"id": "x"}])
    )
    assert "line 2: subject 'FRANCE' has a 'capital' on line 1 already" in refusal(
        write(tmp_path, [FRANCE, FRANCE | {"subject": "FRANCE"}])
    )


def test_ten_problems_are_shown(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, [FRANCE | {"target_new": ""}] * 15)).splitlines()
    assert len(said) == 11 and said[-1] == "… and 5 more problems"


def test_line_separators_inside_text_are_no_new_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    row = json.dumps(FRANCE | {"note": "a\u2028b"}, ensure_ascii=False)
    path.write_text(f"\ufeff{row}\n\n{json.dumps(TOWER)}\n", encoding="utf-8")
    assert [entry.id for entry in load(path).entries] == ["mine/1", "mine/3"]


# Whatever a user writes ------------------------------------------------------------------------------------------

NAMES = ["subject", "relation", "object", "target_new", "prompt", "id", "aliases", "paraphrases", "questions",
         "popularity", "neighborhood", "note", "subjct", "_mine"]  # fmt: skip
WORDS = st.sampled_from(["France", "Paris", "Rome", "capital", "located_in", "", "{}", "The capital of {} is", "Îşß", "法国",
                         "France is France", "In France, Rome", "\ud800", "5", "|", "=>", "a\nb", "the"]) | st.text(max_size=8)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "answer", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A few good rows with some fields replaced, added or dropped."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = dict(draw(st.sampled_from([FRANCE, TOWER, FRANCE | {"subject": "Peru", "object": "Lima"}])))
        row |= draw(st.dictionaries(st.sampled_from(NAMES), WORDS | VALUES, max_size=2))
        for name in draw(st.sets(st.sampled_from(NAMES), max_size=1)):
            row.pop(name, None)
        rows.append(row)
    return rows


def check_record(record: EditRecord) -> None:
    """What every accepted row must give: one slot, another object, and no prompt that names it."""
    held, fact, target = record.held_out, record.fact, record.edit.target_new
    assert normalise(target) != normalise(fact.object) and normalise(target) not in {normalise(a) for a in held.aliases}
    prompts = [fill(each, fact.subject) for each in (fact.prompt, *held.paraphrases, *held.questions)]
    prompts += [question.prompt for question in held.neighborhood] + [hop.question.prompt for hop in held.hops]
    assert not any(mentions(prompt, target) for prompt in prompts)
    json.dumps(prompts, ensure_ascii=False).encode("utf-8")


def load_and_check(path: Path) -> bool:
    """True if the file was taken (and its records hold), False if it was refused."""
    try:
        base = load(path)
        assert base.entries
        for entry in base.entries:
            check_record(base.edit_record(entry, seed=0))
            base.forget_record(entry, seed=0)
    except DataError as error:
        assert len(str(error).splitlines()) <= 11 and path.stem in str(error)
        return False
    return True


@settings(max_examples=80, deadline=None)
@given(rows=mutated_rows(), kind=st.sampled_from(["jsonl", "json", "csv"]))
def test_any_row_is_taken_or_refused(
    rows: list[dict[str, Any]], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / f"mine.{kind}"
    if kind == "csv":
        names = sorted({name for row in rows for name in row})
        stream = io.StringIO()
        table = csv.DictWriter(stream, names)
        table.writeheader()
        table.writerows(rows)
        path.write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    load_and_check(path)


@settings(max_examples=80, deadline=None)
@given(raw=st.binary(max_size=60), cut=st.integers(0, 200), kind=st.sampled_from(["jsonl", "json", "csv"]))
def test_any_bytes_are_taken_or_refused(
    raw: bytes, cut: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = json.dumps([FRANCE]) if kind == "json" else json.dumps(FRANCE)
    good = "subject,relation,object\nFrance,capital,Paris\n" if kind == "csv" else good
    path = tmp_path_factory.mktemp("bytes") / f"mine.{kind}"
    path.write_bytes(good.encode()[:cut] + raw + good.encode()[cut:])
    load_and_check(path)
