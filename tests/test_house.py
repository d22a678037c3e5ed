"""The house rules that a machine can check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from hypothesis import settings

from editkit.arch import ARCHITECTURES
from editkit.data import datasets
from editkit.locate import LOCATORS
from editkit.operators import EDITS, UNLEARNERS
from probes.kinds import PROBES
from reports.render import RENDERERS
from reports.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"editkit/edit": EDITS, "editkit/locate": LOCATORS, "editkit/unlearn": UNLEARNERS, "editkit/arch": ARCHITECTURES, "probes/kinds": PROBES, "reports/sections": SECTIONS, "reports/render": RENDERERS}  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_the_layers_are_kept():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


@pytest.mark.parametrize(
    "package",
    ["editkit.edit", "editkit.locate", "editkit.unlearn", "probes.kinds", "reports.sections", "reports.render"],
)
def test_extensions_do_not_know_each_other(package):
    """What two share stands in a file whose name begins with "_", or a layer down."""
    graph = grimp.build_graph(package.partition(".")[0], include_external_packages=False)
    public = {m for m in graph.find_children(package) if not m.rpartition(".")[2].startswith("_")}
    assert public
    known = {(a, b) for a in public for b in graph.find_modules_directly_imported_by(a) if b in public}
    assert not known


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_is_named_as_what_it_registers(folder):
    stems = {p.stem for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("_")}
    assert set(FOLDERS[folder].names()) == stems


def test_the_data_folder_holds_no_python_and_shadows_nothing():
    assert not list((ROOT / "datasets").rglob("*.py"))
    assert python("import datasets; print(hasattr(datasets, 'load_dataset'))") == "True"


def test_importing_the_packages_costs_no_torch():
    code = "import sys, editkit, probes, probes.verdict, editkit.facts, editkit.data; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_the_generated_parts_of_the_readme_are_fresh():
    done = subprocess.run([sys.executable, "tools/readme.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "the README's tables are stale; run `make docs`"


PLACES = (
    r"(?<![\w.:/~$@)}-])/(?!dev/|proc/|usr/bin/env\b)[\w.+-]+/[\w.+-]",  # an absolute path of two parts or more
    r"\b[A-Za-z]:\\\\?[A-Za-z]",  # a Windows drive
    r"https?://[\w.:-]+(/[\w.-]+)*/simple\b",  # a package index
    r"\b(extra-)?index-url\b|\bfind-links\b",
)


def sources() -> list[Path]:
    """Every text file that comes along, what is in no folder too."""
    folders = ("editkit", "probes", "reports", "datasets", "tools", "tests", "docs", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("[!.]*"))
    return [path for path in found if path.is_file() and path.suffix not in {".png", ".pyc"}]


def places_in(text: str) -> list[str]:
    """What in a text is true on one machine only: absolute paths, and where its packages come from."""
    return [match[0] for place in PLACES for match in re.finditer(place, text)]


def test_no_source_names_a_machine():
    for path in sources():
        if path != Path(__file__):
            found = places_in(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{path.relative_to(ROOT)} names {found}"


@pytest.mark.parametrize(
    "text", ['open("/home/me/x")', "see /opt/data/.", "a\n/root/.cache/y", "C:\\Users", "pip install --index-url x"]
)
def test_a_place_is_found(text):
    assert places_in(text)


@pytest.mark.parametrize("text", ["https://a.org/b/c.html", "edit/unlearn/x", "~/.cache/y", "a / b", "</td></table>"])
def test_what_is_no_place_is_left_alone(text):
    assert not places_in(text)


def test_the_profile_that_was_asked_for_is_in_use():
    assert settings.get_current_profile_name() == os.environ.get("HYPOTHESIS_PROFILE", "default")
    ci = settings.get_profile("ci")
    assert ci.derandomize and ci.deadline is None and ci.print_blob


def test_licence_and_notice_come_along():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    world = datasets()["world"]
    assert world.license in notice
    for source in world.sources:
        assert re.search(rf"\b{source['package']}\b", notice, re.IGNORECASE), source
        assert all(name in notice for name in re.findall(r"[\w.]+-[\d.]+|MIT|BSD-3-Clause", source["license"])), source
