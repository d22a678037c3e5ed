"""What `edit --dry-run` prints: all that `plan` found, problems among it, each by the ids of its facts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from telling import Telling

from editkit.errors import InputError
from editkit.facts import Edit, EditRecord, Fact
from editkit.operators import provenance_of
from editkit.patch import DenseDelta, WeightPatch
from reports.outlook import check
from reports.planning import show_plan
from reports.watch import Silent


@dataclass(frozen=True, slots=True)
class Doubling:
    """Adds half of a matrix to it, whatever the edits are."""

    def __call__(self, handle, edits, *, seed, progress=None):
        name = handle.weight_name("mlp_out", 0)
        delta = DenseDelta(0.5 * handle.matrix(name).clone())
        return WeightPatch({name: delta}, provenance_of("doubling", self, handle, edits, seed))


def record(number, subject, new="Rome"):
    return EditRecord(f"own/{number}", Edit(Fact(subject, "capital", "Paris", "The capital of {} is"), new))


def shown(capsys, handle, records):
    show_plan(handle, Doubling(), "a guess", records, 0, Silent())
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_how_far_the_weights_may_move_and_warns(handle, capsys):
    told = shown(capsys, handle, [record(1, "France"), record(2, "Peru")])
    for part in ("by 70.7% of their norm", "to 100.0%, if all go one", "GiB, with the changes of all facts"):
        assert part in told
    assert "2 edits may move the weights by 0.7" in told and "(norm_bound, prune)" in told
    alone = shown(capsys, handle, [record(1, "France")])
    assert "by about 50.0% of their norm" in alone and "if all go one" not in alone
    assert "may move the weights" not in alone


def test_facts_that_contradict_each_other_are_named_by_their_ids_and_refused(handle, capsys):
    given = [record(4, "Peru"), record(7, "France"), record(9, "France", "Lima")]
    assert "own/7 and own/9: 'The capital of France is' cannot be given both" in shown(capsys, handle, given)
    with pytest.raises(InputError, match="1 fact cannot be edited: own/7 and own/9: .* keep one of them"):
        check(handle, given, Silent())


def test_what_is_only_odd_is_said_and_refuses_nothing(handle):
    watch = Telling()
    check(handle, [record(1, "C++"), record(2, "C#", "Lima")], watch)
    [told] = watch.said
    assert told.startswith("own/1 and own/2: their prompts are alike but for case and signs")
