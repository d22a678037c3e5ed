"""Files and folders: nothing is lost, and what is written can be read by whom the umask says."""

from __future__ import annotations

import os
import stat

import pytest

from editkit.errors import InputError
from editkit.files import atomic_folder, stamp_of


def test_an_older_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    place = tmp_path / "saved"
    place.mkdir()
    (place / "old.txt").write_text("old")
    replace, calls = os.replace, []

    def fails_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("editkit.files.os.replace", fails_second)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(place) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [p.name for p in place.iterdir()] == ["old.txt"] and [p.name for p in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_without_the_mark_is_never_replaced(tmp_path, late):
    place = tmp_path / "thesis"
    place.mkdir()
    if not late:
        (place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files and no mark.txt"), atomic_folder(place, mark="mark.txt"):
        (place / "thesis.txt").write_text("years of work")  # or it comes while the new one is made
    assert (place / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_and_a_marked_one_are_replaced(tmp_path):
    place = tmp_path / "saved"
    place.mkdir()
    for text in ("one", "two"):
        with atomic_folder(place, mark="mark.txt") as temporary:
            (temporary / "mark.txt").write_text(text)
    assert (place / "mark.txt").read_text() == "two"


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    place = tmp_path / "thesis.txt"
    place.write_text("years of work")
    with pytest.raises(FileExistsError), atomic_folder(place):
        pass
    assert place.read_text() == "years of work"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX rights")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_of_a_folder_have_the_rights_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "saved") as temporary:
            (temporary / "in").mkdir(mode=0o700)
            (temporary / "in" / "weights").touch(mode=0o600)
        assert os.umask(umask) == umask, "the umask was changed"
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "saved" / name).stat().st_mode) for name in ("", "in", "in/weights")]
    assert modes == [0o777 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_a_stamp_changes_with_what_is_written_and_only_then(tmp_path):
    (tmp_path / "weights").write_bytes(b"1234")
    first = stamp_of(tmp_path)
    assert stamp_of(tmp_path) == first
    os.utime(tmp_path / "weights", ns=(1, 1))
    again = stamp_of(tmp_path)
    (tmp_path / "more").touch()
    assert len({first, again, stamp_of(tmp_path)}) == 3
