"""What every data set that comes along promises; a new one is tested here without being named."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from editkit.data import check_card, data_folder, datasets, load

FOLDERS = sorted(path.name for path in data_folder().iterdir() if path.is_dir())
EACH = pytest.mark.parametrize("name", FOLDERS)
WORDINGS = 8  # of a relation that may be changed
SAMPLE_ROWS = 200
SAMPLE_BYTES = 100_000


@EACH
def test_its_card_bears_its_folders_name_and_describes_its_files(name):
    card = check_card(data_folder() / name)
    assert card.name == name
    files = {path.name for path in (data_folder() / name).iterdir()}
    assert files - {"card.toml"} == set(card.sha256)


@EACH
def test_its_card_says_whose_it_is_and_what_it_is(name):
    card = datasets()[name]
    texts = (card.title, card.task, card.description, card.license, card.citation)
    assert all(text.strip() for text in texts)
    assert card.sources
    for source in card.sources:
        assert all(source.get(field, "").strip() for field in ("package", "version", "license", "gives")), source


@EACH
def test_its_card_counts_what_is_read(name):
    base, card = load(name), datasets()[name]
    assert card.records == Counter(entry.relation for entry in base.entries)
    assert len({entry.id for entry in base.entries}) == len(base.entries)
    assert base.editable


@EACH
def test_its_sample_is_small(name):
    path = data_folder() / name / "sample.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines()
    assert 0 < len(rows) <= SAMPLE_ROWS and path.stat().st_size <= SAMPLE_BYTES
    assert datasets()[name].splits["sample"] == len(rows)
    assert all(isinstance(json.loads(row), dict) for row in rows)


@EACH
def test_each_relation_that_may_be_changed_has_wordings_enough_and_half_are_held_out(name):
    base = load(name)
    for relation in {entry.relation: base.relations[entry.relation] for entry in base.editable}.values():
        held_out = {*relation.paraphrases, *relation.questions}
        assert len(set(relation.templates)) == len(relation.templates) >= WORDINGS, relation.name
        assert held_out.isdisjoint(relation.seen), relation.name
        assert 2 * len(held_out) >= len(relation.templates), relation.name
        assert relation.paraphrases and relation.questions, relation.name


@EACH
def test_each_relation_that_may_be_changed_gives_records(name):
    base = load(name)
    for entry in {entry.relation: entry for entry in base.editable}.values():
        record = base.edit_record(entry, seed=0)
        assert record.edit.target_new in base.range_of(entry.relation)
        assert record.held_out.neighborhood
        assert base.forget_record(entry, seed=0).examples


@EACH
def test_popularity_has_a_meaning_and_a_unit_where_it_is_given(name):
    base = load(name)
    for entry in base.editable:
        given = entry.popularity is not None
        assert not given or (base.relations[entry.relation].popularity and datasets()[name].popularity), entry.id
        assert given == (entry.stratum is not None), entry.id
