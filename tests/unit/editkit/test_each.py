"""Patches of several edits, each by itself, where some cannot be made."""

from __future__ import annotations

import pytest
from edit_examples import EDITS
from picky import Picky

from editkit.errors import MethodError
from editkit.operators import each_that_can

SUBJECTS = [edit.fact.subject for edit in EDITS]


@pytest.mark.parametrize("fails", [[], SUBJECTS[:1], SUBJECTS[1:], SUBJECTS])
def test_an_operator_without_a_way_to_find_them_together_tries_each_once(handle_of, monkeypatch, fails):
    monkeypatch.setattr(Picky, "asked", [])
    found = each_that_can(Picky(tuple(fails)), handle_of("llama"), EDITS, seed=0)
    assert Picky.asked == [(subject,) for subject in SUBJECTS]
    assert [isinstance(made, MethodError) for made in found] == [subject in fails for subject in SUBJECTS]
