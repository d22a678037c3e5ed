"""The command `editkit`.

Exit codes: 0 every claim holds, 1 some claim does not hold, 3 not enough evidence, 2 bad input, 4 model or environment.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from editkit import __version__
from editkit.models import DEFAULT_MODEL
from reports import commands
from reports.audit import run
from reports.console import EXIT, Bars, one_line_errors, out
from reports.listing import LISTS, show
from reports.record import read_audit
from reports.render import write_reports
from reports.spec import AuditSpec, read_spec
from reports.verdicts import show_verdicts

app = typer.Typer(
    name="editkit",
    help="Change what a language model knows, then try hard to break the change.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option("--model", "-m", help="Embedded model, folder, .gguf file or hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Facts = Annotated[str, typer.Option(help="A data set by name, or your own .jsonl, .json or .csv file.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same patches and questions.")]
Number = Annotated[int | None, typer.Option("--n", help="How many facts; of your own file all by default.", min=1)]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle weights (they can run code).")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model author's code.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True)
class Given:
    """Options that were given, by their place in the spec."""

    values: dict[str, Any]

    def nested(self) -> dict[str, Any]:
        spec: dict[str, Any] = {}
        for place, value in self.values.items():
            if value is None:
                continue
            *parents, leaf = place.split(".")
            node = spec
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return spec


def default_folder(spec: AuditSpec) -> Path:
    """runs/<slug>-<key>: the same command finds the same folder again, so it resumes."""
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join([Path(spec.model.name).name, *(o.name for o in spec.operators)]).lower())
    return Path("runs") / f"{slug.strip('-')[:60]}-{spec.key()[:8]}"


@app.command()
def audit(
    spec: Annotated[Path | None, typer.Argument(help="A spec in TOML; without one the default audit runs.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Embedded model, folder, .gguf file or hub id.")
    ] = None,
    operator: Annotated[list[str] | None, typer.Option("--operator", "-o", help="May be given more than once.")] = None,
    facts: Annotated[str | None, typer.Option(help="A data set by name, or your own file.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="How many facts; by default 8, of your own file all.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same patches and questions.")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="The run folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps …")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    all_facts: Annotated[bool, typer.Option("--all-facts", help="Also facts that the model does not know.")] = False,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of resuming.")] = False,
    debug: Debug = False,
) -> None:
    """Change a model, try to break the change, and write the report."""
    with one_line_errors(debug):
        given = {
            "model.name": model, "model.device": device, "model.dtype": dtype, "seed": seed,
            "model.allow_pickle": allow_pickle or None, "model.trust_remote_code": trust_remote_code or None,
            "facts.source": facts, "facts.n": n, "facts.known_only": False if all_facts else None,
            "operators": [{"name": name} for name in operator] if operator else None,
        }  # fmt: skip
        resolved = read_spec(spec, Given(given).nested())
        folder = out_folder or default_folder(resolved)
        command = shlex.join(["editkit", *sys.argv[1:]])
        with Bars() as bars:
            found = run(resolved, folder, watch=bars, command=command, fresh=fresh)
        show_verdicts(found, folder)
    raise typer.Exit(EXIT[found.ruling()])


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished audit.")],
    debug: Debug = False,
) -> None:
    """Write the reports again from the record; no model is needed."""
    with one_line_errors(debug):
        found = read_audit(folder)
        write_reports(found, folder)
        show_verdicts(found, folder)
    raise typer.Exit(EXIT[found.ruling()])


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=", ".join(LISTS))] = "operators",
    debug: Debug = False,
) -> None:
    """List what there is: operators, probes, metrics, datasets, models …"""
    with one_line_errors(debug):
        show(what)


Save = Annotated[
    Path, typer.Option(help="Folder for the patched model: a normal transformers checkpoint and the patch.")
]


@app.command()
def edit(
    facts: Facts,
    save: Save,
    operator: Annotated[str, typer.Option("--operator", "-o")] = "rome",
    model: Model = DEFAULT_MODEL,
    n: Number = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    debug: Debug = False,
) -> None:
    """Edit facts in a model and save it."""
    with one_line_errors(debug), Bars() as bars:
        wish = commands.Wish("edit", facts, operator, model, n, seed, device, dtype, allow_pickle, trust_remote_code)
        commands.change(wish, save, bars)


@app.command()
def unlearn(
    forget: Annotated[str, typer.Option(help="Facts to forget: a data set by name, or your own file.")],
    save: Save,
    operator: Annotated[str, typer.Option("--operator", "-o")] = "npo",
    model: Model = DEFAULT_MODEL,
    n: Number = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    debug: Debug = False,
) -> None:
    """Make a model forget facts and save it."""
    with one_line_errors(debug), Bars() as bars:
        wish = commands.Wish(
            "unlearn", forget, operator, model, n, seed, device, dtype, allow_pickle, trust_remote_code
        )
        commands.change(wish, save, bars)


@app.command()
def probe(
    facts: Facts,
    patch: Annotated[
        Path | None,
        typer.Option(help="A patch that `editkit edit --save` wrote; without one, the questions are listed."),
    ] = None,
    probes: Annotated[list[str] | None, typer.Option("--probe", "-p", help="May be given more than once.")] = None,
    model: Model = DEFAULT_MODEL,
    n: Number = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    forget: Annotated[bool, typer.Option("--forget", help="The patch made the model forget the facts.")] = False,
    debug: Debug = False,
) -> None:
    """Ask the probes' questions before and after a saved patch."""
    with one_line_errors(debug), Bars() as bars:
        wish = commands.Wish("unlearn" if forget else "edit", facts, "", model, n, seed, device, dtype, False, False)
        commands.probe(wish, patch, probes or [], bars)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"editkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()
