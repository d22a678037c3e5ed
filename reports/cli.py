"""The command `editkit`.

Exit codes: 0 every claim holds, 1 some claim does not hold, 3 not enough evidence, 2 bad input, 4 model or environment.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from editkit import __version__
from editkit.errors import InputError
from reports import commands, removing
from reports.audit import run
from reports.console import EXIT, Bars, OneLine, one_line_errors, out
from reports.listing import LISTS, show
from reports.options import asked_for, digests
from reports.record import read_audit
from reports.render import write_reports
from reports.run_folder import default_folder
from reports.spec import resolved
from reports.verdicts import show_verdicts

CODES = (
    "Exit codes: 0 every claim holds (or the command did its work), 1 some claim does not hold, 3 not enough evidence, "
    "2 bad input, 4 model or environment, 70 a bug."
)
SAVE_CODES = (
    "Exit codes: 0 it was saved (what it prints says whether it took, and which facts were passed over), 2 bad input, "
    "4 model, environment, or a method that finds no change for any of the facts, 70 a bug."
)
app = typer.Typer(
    name="editkit",
    help="Change what a language model knows, then try hard to break the change.",
    epilog=CODES,
    cls=OneLine,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FACTS = (
    "a data set by name, or your own .jsonl, .json or .csv file with the fields subject, relation, object, prompt "
    "(with {} for the subject) and, for an edit, target_new."
)

Spec = Annotated[Path | None, typer.Argument(help="A spec in TOML; without one the default audit runs.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Embedded model, folder, .gguf file or hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
Compute = Annotated[
    str | None,
    typer.Option(
        "--compute",
        help="How a change of bfloat16 or float16 weights is computed. float32 (if not said): as of the same weights "
        "in float32, and in their memory. native: as the weights are, in half of it, less exactly.",
    ),
]
Facts = Annotated[str | None, typer.Option("--facts", help=f"The facts to change: {FACTS}")]
OwnFacts = Annotated[str, typer.Option("--facts", help=f"The facts: {FACTS}")]
Forget = Annotated[str, typer.Option("--forget", help=f"The facts to forget: {FACTS}")]
Number = Annotated[
    int | None, typer.Option("--n", min=1, help="How many facts; by default 8 of a data set, all of your own file.")
]
AllFacts = Annotated[bool, typer.Option("--all-facts", help="Also facts that the model does not answer right.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same patches and questions.")]
Operators = Annotated[list[str] | None, typer.Option("--operator", "-o", help="May be given more than once.")]
Operator = Annotated[str, typer.Option("--operator", "-o", help="`editkit list operators` shows what there is.")]
Presets = Annotated[
    str | None,
    typer.Option("--preset", help="published: for this model, or a guess; auto: search the settings on this model."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the operator, above its preset, as NAME=VALUE in TOML (of.name=alphaedit, layer=5, "
        "layers=[4,5]); may be given more than once.",
    ),
]
Probes = Annotated[list[str] | None, typer.Option("--probe", "-p", help="May be given more than once.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle weights (they can run code).")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model author's code.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; by default one below runs/.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew instead of resuming.")]
SAVED = "A new folder for the patched model: a normal transformers checkpoint, and the patch."
Save = Annotated[Path, typer.Option("--save", help=SAVED)]
SaveOrPlan = Annotated[Path | None, typer.Option("--save", help=SAVED)]
Dry = Annotated[
    bool, typer.Option("--dry-run", help="Try the first facts, say what all will take and what is wrong; save nothing.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier --save wrote to that folder.")]
On = Annotated[
    list[Path] | None,
    typer.Option("--on", help="A patch that --save wrote, put on first; may be given more than once, oldest first."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        help="A patch that was taken out and stays off, by its file or its digest: what was made on top of it goes on "
        "all the same. May be given more than once.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command(epilog=CODES)
def audit(
    spec: Spec = None,
    model: Model = None,
    operator: Operators = None,
    preset: Presets = None,
    settings: Settings = None,
    facts: Facts = None,
    n: Number = None,
    all_facts: AllFacts = False,
    seed: Seed = None,
    out_folder: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    compute: Compute = None,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Change a model, try to break the change, and write the report."""
    given = locals()
    with one_line_errors(debug):
        asked = resolved(asked_for(given))
        folder = out_folder or default_folder(asked)
        command = shlex.join(["editkit", *sys.argv[1:]])
        with Bars() as bars:
            found = run(asked, folder, watch=bars, command=command, fresh=fresh)
        show_verdicts(found, folder)
    raise typer.Exit(EXIT[found.ruling()])


@app.command(epilog=CODES)
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


@app.command(epilog=SAVE_CODES)
def edit(
    facts: OwnFacts,
    save: SaveOrPlan = None,
    operator: Operator = "rome",
    preset: Presets = None,
    settings: Settings = None,
    on: On = None,
    without: Without = None,
    model: Model = None,
    n: Number = None,
    all_facts: AllFacts = False,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    compute: Compute = None,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    overwrite: Overwrite = False,
    dry_run: Dry = False,
    debug: Debug = False,
) -> None:
    """Edit facts in a model, all in one change, and save it; with --on it comes on top of earlier ones."""
    given = locals()
    with one_line_errors(debug), Bars() as bars:
        asked, waived = asked_for(given), digests(without)
        if dry_run:
            commands.plan(asked, bars, on=on or (), without=waived)
        elif save is None:
            raise InputError("where shall the edited model go? Give --save FOLDER, or --dry-run to see what it takes")
        else:
            commands.change("edit", asked, save, bars, on=on or (), without=waived, overwrite=overwrite)


@app.command(epilog=SAVE_CODES)
def unlearn(
    facts: Forget,
    save: Save,
    operator: Operator = "npo",
    settings: Settings = None,
    model: Model = None,
    n: Number = None,
    all_facts: AllFacts = False,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    compute: Compute = None,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Make a model forget facts and save it."""
    given = locals()
    with one_line_errors(debug), Bars() as bars:
        asked = asked_for(given)
        commands.change("unlearn", asked, save, bars, overwrite=overwrite)


@app.command()
def probe(
    facts: OwnFacts,
    patch: Annotated[
        Path | None,
        typer.Option(
            "--patch", help="A patch that --save wrote; without one the questions are listed, and no model is loaded."
        ),
    ] = None,
    on: On = None,
    without: Without = None,
    probe: Probes = None,
    model: Model = None,
    n: Number = None,
    all_facts: AllFacts = False,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    forget: Annotated[bool, typer.Option("--forget", help="The patch made the model forget the facts.")] = False,
    debug: Debug = False,
) -> None:
    """Ask the probes' questions before and after a saved patch, about the same facts: give --n, --seed … as then."""
    given = locals()
    with one_line_errors(debug), Bars() as bars:
        asked = asked_for(given)
        task = "unlearn" if forget else "edit"
        if patch is None:
            commands.listed(task, asked, bars)
        else:
            commands.probe(task, asked, patch, bars, on=on or (), without=digests(without))


@app.command()
def remove(
    patch: Annotated[
        list[Path], typer.Option("--patch", help="A patch that --save wrote; given more than once, oldest first.")
    ],
    take_out: Annotated[Path, typer.Option("--take-out", help="Which of the patches goes.")],
    save: Annotated[
        Path | None, typer.Option("--save", help="A new folder for the model with the others, a normal checkpoint.")
    ] = None,
    without: Without = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    debug: Debug = False,
) -> None:
    """Take one patch out from among others, and tell what that does to them."""
    given = {key: value for key, value in locals().items() if key not in ("patch", "take_out", "save")}
    with one_line_errors(debug), Bars() as bars:
        removing.remove(asked_for(given), patch, take_out, save, bars, without=digests(without))


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
