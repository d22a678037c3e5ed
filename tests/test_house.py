"""The house rules that a machine can check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from editkit.arch import ARCHITECTURES
from editkit.operators import EDITS, UNLEARNERS
from probes.kinds import PROBES
from reports.render import RENDERERS
from reports.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"editkit/edit": EDITS, "editkit/unlearn": UNLEARNERS, "editkit/arch": ARCHITECTURES, "probes/kinds": PROBES, "reports/sections": SECTIONS, "reports/render": RENDERERS}  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_the_layers_are_kept():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "package", ["editkit.edit", "editkit.unlearn", "probes.kinds", "reports.sections", "reports.render"]
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


def test_no_source_names_a_machine():
    for path in [
        *ROOT.glob("*.*"),
        *(p for top in ("editkit", "probes", "reports", "datasets", "tools", "tests") for p in (ROOT / top).rglob("*")),
    ]:
        if path.suffix in {".py", ".toml", ".md", ".txt", ".html", ".json", ".jsonl"} and path.name != "test_house.py":
            text = path.read_text(encoding="utf-8", errors="replace")
            for forbidden in ("/work/", "/tmp/w", "pypi.org/simple", "files.pythonhosted"):
                assert forbidden not in text, f"{path} names {forbidden}"
