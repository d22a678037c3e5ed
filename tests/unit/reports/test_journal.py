"""The journal: what was written is read again, whatever struck, and nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.ask import Key
from probes.verdict import Reply
from reports.record import JOURNAL, Journal, RecordError, read_audit

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
    path.write_text('{"kind": "header"}\nnot json\n{"kind": "end"}\n')
    with pytest.raises(RecordError, match="line 2 is no JSON"):
        Journal(path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(tmp_path / JOURNAL).append("x", value=float("nan"))


def test_no_run_and_half_a_run_are_told_apart(tmp_path):
    with pytest.raises(RecordError, match="holds no audit.jsonl"):
        read_audit(tmp_path)
    (tmp_path / JOURNAL).write_text(json.dumps({"kind": "header"}) + "\n")
    with pytest.raises(RecordError, match="did not finish; run the same `editkit audit` command"):
        read_audit(tmp_path)


def test_a_full_disk_says_so(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    journal = Journal(tmp_path / JOURNAL)
    journal._stream = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        journal.append("x", value=1)
