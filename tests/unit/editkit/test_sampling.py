"""Where text that a model writes is kept: what was interrupted goes on, what is broken is written anew."""

from __future__ import annotations

import json

import pytest
from edit_examples import private_cache

from editkit import sampling
from editkit.sampling import TextPlan, sampled_texts

PLAN = TextPlan(11, 40, seed=3, top_k=20)  # three batches of four, the last one shorter


@pytest.fixture(autouse=True)
def texts(tmp_path, monkeypatch):
    """The folder of texts."""
    monkeypatch.setattr(sampling, "ROWS", 4)
    with private_cache(str(tmp_path / "cache")):
        yield tmp_path / "cache" / "texts"


class Interrupted:
    """Strikes when so many texts are heard of; `heard` keeps their numbers."""

    def __init__(self, at: int) -> None:
        self.at, self.heard = at, []

    def __call__(self, done: int, of: int) -> None:
        self.heard.append(done)
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("strikes_at", "kept"), [(1, 0), (5, 4), (9, 8), (10, 8)])
def test_text_that_was_interrupted_goes_on_and_is_the_same(handle, texts, strikes_at, kept):
    expected = sampled_texts(handle, PLAN)
    [file] = texts.iterdir()
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        sampled_texts(handle, PLAN, Interrupted(strikes_at))
    heard = []
    assert sampled_texts(handle, PLAN, lambda done, of: heard.append(done)) == expected
    assert min(heard) >= kept and heard[0] < kept + 4, "it goes on with the batch that was not kept"
    assert [each.name for each in texts.iterdir()] == [file.name], "the part is gone"


def test_interrupted_again_and_again_it_is_the_same(handle, texts):
    expected = sampled_texts(handle, PLAN)
    for file in texts.iterdir():
        file.unlink()
    for strikes_at in (5, 6, 9, 10):
        with pytest.raises(KeyboardInterrupt):
            sampled_texts(handle, PLAN, Interrupted(strikes_at))
    assert sampled_texts(handle, PLAN) == expected


def test_a_part_is_of_one_plan_alone(handle):
    other = TextPlan(11, 40, seed=4, top_k=20)
    expected = sampled_texts(handle, other)
    for file in (sampling.cache_folder() / "texts").iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        sampled_texts(handle, PLAN, Interrupted(9))
    assert sampled_texts(handle, other) == expected


DAMAGED = [b"[", b"", b"\xff\xfe", b"{}", b"[1]", b'["one"]', b"null", b"7"]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_broken_file_is_written_anew(handle, texts, damage):
    expected = sampled_texts(handle, PLAN)
    [file] = texts.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage)
    with pytest.warns(UserWarning, match=f"{file.name} cannot be read .*; writing the text anew"):
        assert sampled_texts(handle, PLAN) == expected
    assert file.read_bytes() == good


@pytest.mark.parametrize("damage", [b"[", b"{}", b"7", "texts", "count", "state", "no state"])
def test_a_broken_part_is_written_anew(handle, texts, damage):
    expected = sampled_texts(handle, PLAN)
    [file] = texts.iterdir()
    file.unlink()
    with pytest.raises(KeyboardInterrupt):
        sampled_texts(handle, PLAN, Interrupted(9))
    [part] = texts.iterdir()
    kept = json.loads(part.read_bytes())
    broken = {
        "texts": kept | {"texts": [1] * 8},
        "count": kept | {"texts": kept["texts"][:5]},
        "state": kept | {"generator": kept["generator"][:-2]},
        "no state": kept | {"generator": "x"},
    }
    part.write_bytes(damage if isinstance(damage, bytes) else json.dumps(broken[damage]).encode())
    with pytest.warns(UserWarning, match="partial.json cannot be read .*; writing the text anew"):
        assert sampled_texts(handle, PLAN) == expected


def test_a_folder_that_cannot_be_written_costs_only_time(handle, tmp_path, monkeypatch):
    expected = sampled_texts(handle, PLAN)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="set EDITKIT_CACHE"):
        assert sampled_texts(handle, PLAN) == expected
