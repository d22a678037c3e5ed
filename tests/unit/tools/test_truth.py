"""The page of real results, and how the literature's directions are ruled."""

from __future__ import annotations

import json

import pytest
from truth_curves import CURVES, curves
from truth_directions import COUNTERFACT, DIRECTIONS, WORLD, Share, directions, rule
from truth_page import COLUMNS, KEPT, KNOWS, PICTURE, TABLE, TOKENS, filled, kept_page, kept_rows
from truth_parts import TITLES

from editkit.operators import EDITS, Guarding, Lost, configured, lost, operator_class, provenance_of


def share(value, half=0.05):
    return Share(f"x{value}", value, value - half, value + half)


def row(operator, **figures):
    told = {name: [value, value - 0.02, value + 0.02, 100] for name, value in figures.items()}
    return {"operator": operator, "figures": told}


def after(operator, edits, batch=1, **shares):
    told = {name: [v, v - 0.02, v + 0.02] for name, v in shares.items()}
    return {"operator": operator, "edits": edits, "batch": batch} | told


def test_the_page_is_what_the_kept_rows_make():
    assert TABLE.read_text("utf-8") == kept_page()


def test_kept_rows_are_of_what_their_file_says():
    for file in KEPT.glob("*/*.json"):
        kept = json.loads(file.read_text("utf-8"))
        assert kept["operator"] == file.stem
        assert 0 < kept["facts"] <= kept["of"]
        asked = (*COLUMNS[file.parent.name], *(TOKENS if file.parent.name == WORLD else ()))
        assert [*kept["figures"]] == [column.title for column in asked], "measured by another protocol: make it anew"
        assert [*kept["parts"]] == ([*TITLES] if file.parent.name == WORLD else []), "make it anew"


@pytest.mark.slow
def test_the_page_tells_where_settings_are_from_as_the_presets_do(real_handle):
    """A row whose settings are no longer the preset's keeps the source it was measured with."""
    told = {}
    for file in KEPT.glob("*/*.json"):
        kept = json.loads(file.read_text("utf-8"))
        if kept["operator"] not in EDITS.names():  # of other settings
            continue
        operator, source = configured(kept["operator"], real_handle)
        if json.loads(json.dumps(provenance_of("", operator, real_handle, [], 0).settings)) == kept["settings"]:
            told[file] = kept["settings_source"] == source
    assert told and all(told.values()), f"take the new source over: {[str(f) for f, same in told.items() if not same]}"


def test_what_is_given_on_top_of_a_preset_is_not_said_to_be_from_it():
    told = kept_page()
    kept = [json.loads(file.read_text("utf-8")) for file in KEPT.glob(f"{WORLD}/*.json")]
    assert any(row.get("set") for row in kept)
    for row in kept:
        given = f"| `{row['operator']}` | what its name says; else: " in told
        assert given == bool(row.get("set"))


FROM_ON = 0.25  # of what else the model knew: such a loss is told in a plan


@pytest.mark.parametrize("name", EDITS.names())
def test_what_a_plan_says_of_many_edits_is_what_was_measured(name):
    if issubclass(operator_class(name)[1], Guarding):
        assert lost(name, at_once=False) is None, "a plan tells that of the operator within"
        return
    for at_once, file in ((False, f"{name}.jsonl"), (True, f"{name}-by-100.jsonl")):
        lines = KEPT.joinpath("sequential", file)
        rows = [json.loads(line) for line in lines.read_text("utf-8").splitlines()] if lines.exists() else []
        much = sorted((row["edits"], round(1 - row["collateral"][0], 2)) for row in rows)
        first = next((Lost(edits, share) for edits, share in much if share >= FROM_ON), None)
        assert lost(name, at_once=at_once) == first


def test_a_share_in_a_text_is_the_rows_rounded_as_in_the_tables():
    rows = [
        {
            "operator": "rome",
            "figures": {"efficacy": [0.885]},
            "wordings": {"typo": [0.025]},
            "parts": {"a, b": [0.004]},
        }
    ]
    rows[0]["knew"] = {"typo": [0.5]}
    text = "{rome/efficacy} {rome/typo} {rome/a, b} {" + KNOWS + "/typo}"
    assert filled(text, {WORLD: rows}) == "89 % 3 % 0.4 % 50 %" == filled(text, {WORLD: rows * 2})
    stacked = [after("rome", edits, retention=share) for edits, share in ((1, 1.0), (10, 0.8))]
    stacked += [after("rome", 10, 5, retention=0.7)]
    text = "{rome@10/retention} of {rome@1/retention}, {rome@10x5/retention}"
    assert filled(text, {WORLD: rows}, stacked) == "80 % of 100 %, 70 %"
    both = {WORLD: rows, COUNTERFACT: [row("rome", efficacy=0.7) | {"before": {"efficacy": [0.2]}}]}
    text = "{rome/efficacy} {rome@counterfact/efficacy} {unchanged@counterfact/efficacy}"
    assert filled(text, both) == "89 % 70 % 20 %"
    for unknown in ("{memit/typo}", "{rome/cloze}", "{rome@counterfact/efficacy}"):
        with pytest.raises(KeyError):
            filled(unknown, {WORLD: rows})


def test_the_picture_has_a_line_an_operator_and_moves_with_the_numbers():
    stacked = [after(name, n, **dict.fromkeys(CURVES, 0.5)) for name in ("rome", "ike") for n in (1, 10)]
    drawn = curves(stacked)
    assert all(f">{name}<" in drawn for name in ("rome", "ike", *CURVES.values()))
    assert drawn != curves([*stacked[:-1], after("ike", 10, **dict.fromkeys(CURVES, 0.4))])
    assert all(f">{row['operator']}<" in PICTURE.read_text("utf-8") for row in kept_rows()[1]), "make it anew"


@pytest.mark.parametrize(
    ("pairs", "ruling"),
    [
        ([(share(0.8), share(0.5))], "supported"),
        ([(share(0.5), share(0.8))], "not supported"),
        ([(share(0.5), share(0.55))], "not decided"),
        ([(share(0.55), share(0.5))], "not decided"),
        ([(share(0.8), share(0.5)), (share(0.5), share(0.55))], "not decided"),
        ([(share(0.8), share(0.5)), (share(0.5), share(0.8))], "not supported"),
        ([(share(0.8), share(0.5)), (share(0.8), None)], "not measured"),
        ([], "not measured"),
    ],
)
def test_intervals_that_lie_apart_decide(pairs, ruling):
    assert rule(pairs)[0] == ruling


def test_each_direction_can_be_supported_and_contradicted():
    """On rows made to be as the literature has it, and on rows that are its opposite."""
    names = {"rome": 0.7, "memit": 0.7, "alphaedit": 0.7, "ft_l": 0.4, "ike": 0.9, "grace": 0.1}
    doubt = {name: 0.05 if name == "ike" else 0.3 for name in names}
    good = [
        row(name, efficacy=0.97, generalization=names[name], specificity=0.97, disputed=of, contradicted=of)
        for name, of in doubt.items()
    ]
    own, other = "efficacy (ES)", "paraphrases (PS)"
    good_elsewhere = [row(name, **{own: 0.97, other: of}) for name, of in names.items()]
    bad_elsewhere = [row(name, **{own: 0.3, other: 1 - of}) for name, of in names.items()]
    bad = [
        row(name, efficacy=0.3, generalization=1 - names[name], specificity=0.3, disputed=1 - of, contradicted=1 - of)
        for name, of in doubt.items()
    ]
    long = [after(*which, retention=v, collateral=v, elsewhere=v) for *which, v in STACK]
    short = [after(*which, retention=1 - v, collateral=1 - v, elsewhere=1 - v) for *which, v in STACK]
    assert {ruling for _, ruling, _ in directions({WORLD: good, COUNTERFACT: good_elsewhere}, long)} == {"supported"}
    assert {ruling for _, ruling, _ in directions({WORLD: bad, COUNTERFACT: bad_elsewhere}, short)} == {"not supported"}
    assert directions({WORLD: good, COUNTERFACT: [row("elsewhere")]}, long)[2] == directions({WORLD: good}, long)[2]
    other = row("ike-demonstrations-32", generalization=0.99) | {"set": {"demonstrations": 32}}
    assert directions({WORLD: [*good, other]}, long)[2] == directions({WORLD: good}, long)[2]
    assert [says for says, *_ in directions({}, [])] == [says for says, _ in DIRECTIONS]
    assert {ruling for _, ruling, _ in directions({}, [])} == {"not measured"}


STACK = [
    ("rome", 10, 0.9),
    ("rome", 300, 0.1),
    ("r_rome", 300, 0.5),
    ("wise", 300, 0.9),
    ("grace", 300, 0.1),
    ("alphaedit", 300, 0.97),
    ("ultraedit", 300, 0.9),
    ("memit", 300, 0.3),
    *((guard, 300, 0.8) for guard in ("rect", "prune", "norm_bound")),
    ("memit", 300, 100, 0.3),
    ("alphaedit", 300, 100, 0.97),
    ("ultraedit", 300, 100, 0.9),
]
