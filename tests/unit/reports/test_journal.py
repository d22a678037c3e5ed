"""The journal: what was written is read again, whatever struck, and nothing is asked twice."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from audits import realistic, unmeasured
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.ask import Key
from probes.verdict import Reply
from reports.record import JOURNAL, Journal, RecordError, read_audit

HEADER = json.dumps({"kind": "header", "spec": "s", "code": "c", "weights": "w"}) + "\n"
REPLIES = st.builds(
    Reply,
    st.text(),
    st.dictionaries(st.text(min_size=1), st.floats(-50, 0), max_size=3),
    st.dictionaries(st.text(min_size=1), st.booleans(), max_size=3),
)


@settings(max_examples=30, deadline=None)
@given(
    replies=st.dictionaries(st.builds(Key, st.text(), st.text(), st.booleans()), REPLIES, max_size=5),
    cut=st.integers(0, 400),
)
def test_a_kill_loses_at_most_the_last_line(tmp_path_factory, replies, cut):
    path = tmp_path_factory.mktemp("run") / JOURNAL
    journal = Journal(path)
    journal.put(list(replies.items()))
    journal.close()
    whole = path.read_bytes() if path.exists() else b""
    kept = whole[: max(0, len(whole) - cut)]
    path.write_bytes(kept)
    again = Journal(path)
    complete = kept.count(b"\n")
    found = {key: again.get(key) for key in replies}
    assert sum(reply is not None for reply in found.values()) == complete
    assert all(reply is None or reply == replies[key] for key, reply in found.items())
    more = Key("state", "one more")
    again.put([(more, Reply("x"))])
    again.close()
    assert Journal(path).get(more) == Reply("x")
    assert path.read_bytes().count(b"\n") == complete + 1


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / JOURNAL
    path.write_text(HEADER + 'not json\n{"kind": "end"}\n')
    with pytest.raises(RecordError, match="line 2 is no JSON"):
        Journal(path)


@given(replies=st.lists(st.builds(Reply, st.text(), st.dictionaries(st.text(), st.floats(), max_size=3)), max_size=3))
def test_a_number_that_is_not_finite_is_read_back_as_what_it_was(tmp_path_factory, replies):
    path = tmp_path_factory.mktemp("run") / JOURNAL
    journal = Journal(path)
    keyed = [(Key("state", str(place)), reply) for place, reply in enumerate(replies)]
    journal.put(keyed)
    journal.close()
    again = Journal(path)
    assert repr([again.get(key) for key, _ in keyed]) == repr(replies)  # repr, for no NaN equals itself
    for line in path.read_text().splitlines() if path.exists() else []:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_an_audit_with_numbers_that_are_not_finite_is_read_back_as_it_was(tmp_path):
    """Also in what an operator notes of its losses: there it is a word from the beginning."""
    change = dataclasses.replace(
        realistic().changes[0], relative_norm=math.inf, notes={"losses": [1.0, math.nan], "deep": {"x": -math.inf}}
    )
    audit = dataclasses.replace(unmeasured(), changes=(change,))
    Journal(tmp_path / JOURNAL).finish(audit)
    assert repr(read_audit(tmp_path)) == repr(audit)
    assert change.notes == {"losses": [1.0, "NaN"], "deep": {"x": "-Infinity"}}


def finished(tmp_path):
    """A whole record, as its lines."""
    Journal(tmp_path / JOURNAL).finish(realistic(facts=2))
    return (tmp_path / JOURNAL).read_text().splitlines(keepends=True)


def without(name):
    return lambda entry: entry.pop(name)


@pytest.mark.parametrize(
    ("kind", "break_it", "message"),
    [
        ("results", without("notes"), "line 1: an entry of kind 'results' is damaged \\(notes: Field required\\)"),
        ("results", lambda entry: entry.update(notes=3), "line 1: .*'results' is damaged \\(notes: "),
        ("results", lambda entry: entry.update(seconds="long"), "line 1: .*'results' is damaged \\(seconds: "),
        ("fact", without("body"), "line 2: .*'fact' is damaged \\("),
        ("fact", lambda entry: entry["body"].pop("id"), "line 2: .*'fact' is damaged \\(id: Field required\\)"),
        ("claim", lambda entry: entry["body"].update(ruling="x"), "line [0-9]+: .*'claim' is damaged \\(ruling: "),
        ("claim", lambda entry: entry.update(kind=3), "line [0-9]+ is no entry of a record"),
        ("end", lambda entry: entry.update(at="now"), "line [0-9]+: .*'end' is damaged \\(at is 'now'\\)"),
    ],
)
def test_damaged_results_name_file_and_line(tmp_path, kind, break_it, message):
    lines = finished(tmp_path)
    place = next(place for place, line in enumerate(lines) if json.loads(line)["kind"] == kind)
    entry = json.loads(lines[place])
    break_it(entry)
    lines[place] = json.dumps(entry) + "\n"
    (tmp_path / JOURNAL).write_text("".join(lines))
    with pytest.raises(RecordError, match=f"{JOURNAL}.*{message}") as caught:
        read_audit(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "header"}, "'header' is damaged \\(no spec, code, weights\\); pass --fresh"),
        ({"kind": "header", "spec": [], "code": "c", "weights": "w"}, "'header' is damaged \\(no spec\\)"),
        ({"kind": "settled"}, "'settled' is damaged \\(no spec\\)"),
        ({"kind": "reply"}, "'reply' is damaged"),
        ({"kind": "reply", "key": ["s", "p", True], "reply": {"text": 3}}, "'reply' is damaged \\(1.text: "),
    ],
)
def test_a_damaged_entry_names_file_and_line(tmp_path, entry, message):
    (tmp_path / JOURNAL).write_text(HEADER + json.dumps(entry) + "\n")
    with pytest.raises(RecordError, match=f"{JOURNAL}, line 2: an entry of kind {message}") as caught:
        Journal(tmp_path / JOURNAL)
    assert "\n" not in str(caught.value)


def test_no_run_and_half_a_run_are_told_apart(tmp_path):
    with pytest.raises(RecordError, match="holds no audit.jsonl"):
        read_audit(tmp_path)
    (tmp_path / JOURNAL).write_text(HEADER)
    with pytest.raises(RecordError, match="did not finish; run the same `editkit audit` command"):
        read_audit(tmp_path)


def test_a_full_disk_says_so(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    journal = Journal(tmp_path / JOURNAL)
    journal._stream = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        journal.append("x", value=1)
