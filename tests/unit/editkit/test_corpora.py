"""Texts from files and data sets: what is read, and what is said where it cannot be."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import CORPUS
from edit_examples import private_cache

from editkit.corpora import texts_of
from editkit.errors import InputError, UnableError
from editkit.moments import MomentSettings, second_moments


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder that Hugging Face's own `load_dataset` reads, as it reads one of the hub."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "data"
    folder.mkdir()
    for split, texts in (("train", CORPUS), ("test", CORPUS[:1])):
        rows = [{"text": text, "title": text[:4]} for text in ("", *texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_a_data_set_is_read_by_split_and_field(data):
    assert [*texts_of(f"hub:{data}")] == [*CORPUS]
    assert [*texts_of(f"hub:{data}?split=test&field=title")] == [CORPUS[0][:4]]


def test_a_file_is_read_a_text_a_line(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n  two  \n", encoding="utf-8")
    assert [*texts_of(str(file))] == ["one", "two"]


def test_moments_on_a_data_set_are_those_on_its_texts(handle, data, tmp_path):
    with private_cache(str(tmp_path / "cache")):
        settings = MomentSettings(tokens=60, length=20, corpus=f"hub:{data}")
        found = second_moments(handle, [1], settings)[1]
        expected = second_moments(handle, [1], MomentSettings(tokens=60, length=20), texts=CORPUS)[1]
    assert torch.equal(found.matrix, expected.matrix) and found.key == expected.key


def test_no_more_is_read_than_is_taken(data, monkeypatch):
    import datasets

    read = []

    def load(path, **options):
        assert options == {"split": "train", "streaming": True}
        return ({"text": read.append(number) or f"text {number}"} for number in itertools.count())

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [*itertools.islice(texts_of("hub:owner/name"), 3)] == ["text 0", "text 1", "text 2"] and len(read) == 3


@pytest.mark.parametrize(
    ("corpus", "error", "message"),
    [
        ("hub:owner/name?spilt=train", InputError, "no option 'spilt' of a corpus; write hub:OWNER/NAME"),
        ("hub:?split=train", InputError, "no data set is named"),
        ("hub:{data}?field=body", InputError, "no field 'body'; there is text, title"),
        ("hub:{data}?split=dev", UnableError, "cannot read the data set .*dev"),
        ("hub:{data}/missing", UnableError, "cannot read the data set"),
        ("{data}/missing.txt", InputError, "cannot read the corpus .*missing.txt: No such file"),
    ],
)
def test_what_is_wrong_is_told(data, corpus, error, message):
    with pytest.raises(error, match=message):
        [*texts_of(corpus.format(data=data))]


def test_a_file_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Málaga".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        [*texts_of(str(tmp_path / "latin.txt"))]
