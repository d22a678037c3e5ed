"""The command line: what each wrong input says, in one line, with its exit code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import make_handle
from typer.testing import CliRunner

from editkit.patch import load_patch
from reports import commands
from reports.cli import app
from reports.console import MODEL_OR_ENVIRONMENT, _told, err, out
from reports.saving import PATCH_FILE

GOOD = {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome", "prompt": "The capital of {} is"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    make_handle("llama").save(folder)
    return str(folder)


@pytest.fixture
def editkit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
    for console in (out, err):  # COLUMNS would come too late: it is read when they are made
        monkeypatch.setattr(console, "width", 200)
        monkeypatch.setattr(console, "height", 50)  # with a width alone a dumb terminal has 80 columns all the same

    def call(*arguments, code):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done.output

    return call


def facts(tmp_path, *rows, name="facts.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["audit", "--operator", "rme"], 2, "no operator named 'rme'; there is rome"),
        (["audit", "missing.toml"], 2, "cannot read spec missing.toml"),
        (["audit", "--facts", "wrld"], 2, "no data set or file 'wrld'; there is "),
        (["audit", "--model", "./nowhere"], 4, "no folder './nowhere'"),
        (["audit", "--model", "no-such/model"], 4, "cannot load model 'no-such/model'"),
        (["audit", "--dtype", "float8"], 2, "--dtype: Input should be 'float32'"),
        (["audit", "--device", "foo"], 2, "--device: no device 'foo'; there is auto, cpu, cuda, mps"),
        (["audit", "--n", "0"], 2, "error: Invalid value for '--n': "),
        (["audit", "--nosuch"], 2, "error: No such option: --nosuch"),
        (["audti"], 2, "error: No such command 'audti'"),
        (["edit"], 2, "error: Missing option '--facts'; see `editkit edit --help`"),
        (["report", "nowhere"], 2, "holds no audit.jsonl"),
        (["list", "operatrs"], 2, "nothing to list under 'operatrs'; there is operators"),
        (["edit", "--facts", "world", "--operator", "npo", "--save", "x", "--n", "1"], 2, "is an operator for `editkit unlearn`"),
    ],
)  # fmt: skip
def test_wrong_arguments(editkit, arguments, code, message):
    output = editkit(*arguments, code=code)
    *phases, error = output.splitlines()
    assert error.startswith("error: ") and message in error
    assert all(phase.startswith("Loading ") for phase in phases)


def test_without_a_command_the_help_is_shown(editkit):
    assert "Usage: " in editkit(code=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, "{broken"], "line 2"),
        ([without("object")], "object"),
        ([{**GOOD, "target_new": ""}], "target_new"),
        ([{**GOOD, "target_new": "paris"}], "target_new"),
        ([{**GOOD, "prompt": "The capital is"}], "prompt"),
        ([{**without("subject"), "subjct": "France"}], "subject"),
        ([{**GOOD, "subject": 5}], "subject"),
        ([], "empty"),
    ],
)
def test_a_wrong_facts_file_stops_before_a_model_is_loaded(editkit, tmp_path, monkeypatch, rows, message):
    monkeypatch.setattr("reports.audit.ModelHandle.load", lambda *_: pytest.fail("the model was loaded"))
    path = facts(tmp_path, *rows)
    output = editkit("audit", "--facts", path, code=2)
    assert message in output and "facts.jsonl" in output.replace("\n", "")


def test_more_facts_than_are_known(editkit, tmp_path, model):
    output = editkit(
        "audit", "--facts", facts(tmp_path, GOOD), "--model", model, "--n", 5, "--out", tmp_path / "r", code=2
    )
    assert "asked for 5 facts" in output and "the base model answers right 0 of 1" in output


def test_a_file_with_no_known_fact(editkit, tmp_path, model):
    output = editkit("audit", "--facts", facts(tmp_path, GOOD), "--model", model, "--out", tmp_path / "r", code=2)
    assert "the base model answers right 0 of 1" in output and "--all-facts" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("layer = 99", "no layer 99 in"),
        ("layer = 1\nmoments = {tokens = -1}", "needs tokens >= 0"),
        ("layer = 1\ntarget = {learning_rate = nan}", "'target.learning_rate' is nan"),
        ("layer = 1\ntarget = {products = 'int8'}", "products is 'int8'; there is"),
        ("layer = 1\ncontexts = {lengths = 3}", "'contexts.lengths' is 3, expected a list"),
        ("layer = 1\nmoments = {corpus = 'bytes.txt'}", "bytes.txt is not UTF-8"),
    ],
)
def test_settings_that_a_method_cannot_use_are_bad_input(editkit, tmp_path, model, settings, message):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00 text")
    head = "[[operators]]\nname = 'rome'\narms = ['single']\n[operators.settings]\n"
    (tmp_path / "spec.toml").write_text(head + settings)
    arguments = ["--facts", facts(tmp_path, GOOD), "--model", model, "--all-facts", "--out", tmp_path / "r"]
    assert message in editkit("audit", "spec.toml", *arguments, code=2)


def test_a_subject_that_no_method_can_edit_is_no_failed_claim(editkit, tmp_path, model):
    """The last layer's value comes too late for what is asked after the subject: the error is the method's, not 1."""
    (tmp_path / "spec.toml").write_text("[[operators]]\nname = 'rome'\narms = ['single']\nsettings = {layer = 2}")
    arguments = ["--facts", facts(tmp_path, GOOD), "--model", model, "--all-facts", "--out", tmp_path / "r"]
    for _ in range(2):
        output = editkit("audit", "spec.toml", *arguments, code=4)
        assert "no fact could be edited; the first of 1: cannot edit 'France' at layer 2" in output


def test_a_prompt_past_the_context(editkit, tmp_path, model):
    row = {**GOOD, "prompt": "word " * 400 + "the capital of {} is"}
    path = facts(tmp_path, row)
    output = editkit(
        "audit", "--facts", path, "--model", model, "--n", 1, "--all-facts", "--out", tmp_path / "r", code=2
    )
    assert "takes 256; shorten the prompt" in output.replace("\n", " ")


def test_an_output_folder_that_cannot_be_made(editkit, tmp_path, model):
    (tmp_path / "taken").write_text("a file, no folder")
    path = facts(tmp_path, GOOD)
    output = editkit(
        "audit", "--facts", path, "--model", model, "--n", 1, "--all-facts", "--out", tmp_path / "taken" / "run", code=4
    )
    assert "taken" in output


def unprivileged(*arguments, **options):
    """A Python process for which permissions count: root passes by them, so it gives up all that makes it root."""
    drop = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write to every folder, and there is no setpriv to give that up")
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
    command = [*drop, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


@pytest.mark.skipif(os.name != "posix", reason="folders have permissions of another kind here")
def test_an_output_folder_that_may_not_be_written(tmp_path, model):
    (closed := tmp_path / "closed").mkdir()
    path = facts(tmp_path, GOOD)
    closed.chmod(0o555)
    probe = unprivileged("-c", "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK))", closed)
    if probe.returncode:
        pytest.skip(f"cannot try it without root's powers: {probe.stderr.strip() or 'the folder can be written'}")
    arguments = ["audit", "--facts", path, "--model", model, "--n", "1", "--all-facts", "--out", closed / "run"]
    done = unprivileged(
        "-c", "from reports.cli import main; main()", *arguments,
        cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path), "EDITKIT_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    said = [line for line in done.stderr.splitlines() if "closed" in line]
    assert len(said) == 1 and "ermission denied" in said[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(closed.iterdir())


@pytest.mark.parametrize("kind", ["edit", "probe", "metric"])
def test_a_broken_extension_of_a_third_party_is_one_line(tmp_path, kind):
    """It is named where it is looked up, not with a traceback where the command line is imported."""
    (info := tmp_path / "mine-1.0.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[editkit.{kind}]\nbad = no_such_module:Thing\n")
    done = subprocess.run(
        [sys.executable, "-c", "from reports.cli import main; main()", "audit", "--n", "1"],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "300", "EDITKIT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "Loading" not in done.stderr
    assert f"the extension 'bad' of mine (editkit.{kind}) cannot be loaded: ModuleNotFoundError" in done.stderr


def test_a_full_disk(editkit, tmp_path, model, monkeypatch):
    def full(self, kind, **body):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.record.Journal.append", full)
    path = facts(tmp_path, GOOD)
    output = editkit(
        "audit", "--facts", path, "--model", model, "--n", 1, "--all-facts", "--out", tmp_path / "r", code=4
    )
    assert "No space left on device; free some space, then the same command goes on" in output


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "another place"),
        (errno.EACCES, "another place"),
        (errno.EIO, ""),
    ],
)
def test_what_a_disk_says_names_the_users_folder_and_a_way_out(number, way_out):
    hidden = "runs/.saved.0vmfivqz.partial/model/.model.safetensors.ulukscw_.partial"
    told = _told(OSError(number, os.strerror(number), hidden), MODEL_OR_ENVIRONMENT)
    assert told.startswith(f"runs/saved/model/model.safetensors: {os.strerror(number)}") and way_out in told


@pytest.mark.parametrize("what", ["operators", "probes", "metrics", "datasets", "models", "layouts"])
def test_everything_can_be_listed(editkit, what):
    assert {"operators": "rome", "probes": "rephrase", "metrics": "efficacy_generation", "datasets": "world", "models": "smollm2-135m", "layouts": "gpt_neox"}[what] in editkit("list", what, code=0)  # fmt: skip


def test_edit_saves_a_plain_checkpoint_and_probe_reads_the_patch(editkit, tmp_path, model):
    from transformers import AutoModelForCausalLM

    from editkit.handle import ModelHandle
    from editkit.patch import WeightPatch

    path = facts(tmp_path, GOOD)
    editkit(
        "edit",
        "--facts",
        path,
        "--model",
        model,
        "--operator",
        "ft_l",
        "--save",
        tmp_path / "edited",
        "--all-facts",
        code=0,
    )
    handle = ModelHandle.load(model)
    patch = WeightPatch.load(tmp_path / "edited" / "editkit_patch.safetensors")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    with handle.patched(patch):
        ours = handle.model.state_dict()
        assert all((ours[name] == value).all() for name, value in saved.state_dict().items())
    output = editkit(
        "probe",
        "--facts",
        path,
        "--model",
        model,
        "--patch",
        tmp_path / "edited" / "editkit_patch.safetensors",
        "--all-facts",
        "-p",
        "rewrite",
        code=0,
    )
    assert "The capital of France is" in output


def test_a_patch_of_another_model_is_refused(editkit, tmp_path, model):
    from editkit.patch import DenseDelta, Provenance, WeightPatch

    handle = make_handle("llama", seed=3)
    name = handle.weight_name("mlp_out", 0)
    WeightPatch({name: DenseDelta(handle.matrix(name).clone())}, Provenance(base=handle.base_digest)).save(
        tmp_path / "p.safetensors"
    )
    path = facts(tmp_path, GOOD)
    output = editkit(
        "probe", "--facts", path, "--model", model, "--patch", tmp_path / "p.safetensors", "-p", "rewrite", code=2
    )
    assert "the patch was made for weights" in output


def test_edits_on_top_of_each_other_are_saved_and_one_is_taken_out_from_below(editkit, tmp_path, model):
    from editkit.handle import ModelHandle
    from editkit.identity import weights_digest
    from editkit.patch import load_patch

    path, files = facts(tmp_path, GOOD), []
    for number in range(3):
        folder = tmp_path / f"edit{number}"
        on = [part for file in files for part in ("--on", file)]
        settings = ["--facts", path, "--model", model, "--operator", "ft_l", "--all-facts", "--save", folder]
        editkit("edit", *settings, *on, code=0)
        files.append(folder / "editkit_patch.safetensors")
    given = [part for file in files for part in ("--patch", file)]
    output = editkit("remove", *given, "--take-out", files[1], "--model", model, "--save", tmp_path / "left", code=0)
    told = " ".join(output.split())
    assert f"made on top of it, give --without {files[1]}" in told
    assert "of its own 1 edit" in told and "of 2 edits of the others" in told
    handle = ModelHandle.load(model)
    for file in files:
        handle.apply(load_patch(file))
    handle.remove(1)
    left = ModelHandle.load(str(tmp_path / "left"))
    assert left.base_digest == weights_digest(handle.model)
    output = editkit("probe", "--facts", path, "--model", model, "--all-facts", "-p", "rewrite", "--patch", files[2], code=2)  # fmt: skip
    assert "was made on top of other patches" in output
    editkit("probe", "--facts", path, "--model", model, "--all-facts", "-p", "rewrite", "--patch", files[2], "--on", files[0], "--on", files[1], code=0)  # fmt: skip
    for wrong in (files[0].parent / "none", files[0]):
        again = [*given, "--patch", files[0]]
        output = editkit("remove", *again, "--take-out", wrong, "--model", model, code=2)
        assert "must be one of the patches, named once" in " ".join(output.split())


def test_what_a_removal_left_goes_on_again_where_the_patch_taken_out_is_named(editkit, tmp_path, model):
    from editkit.handle import ModelHandle
    from editkit.patch import DenseDelta, Provenance, WeightPatch, load_patch

    handle, files, digests = ModelHandle.load(model), [], []
    for number in range(3):
        name, told = handle.weight_name("mlp_out", number), {"on_top_of": [*digests], "edits": []}
        delta = DenseDelta(torch.full(handle.matrix(name).shape, 1e-3))
        patch = WeightPatch({name: delta}, Provenance("mine", base=handle.base_digest, notes=told))
        files.append(tmp_path / f"{number}.safetensors")
        patch.save(files[-1])
        digests.append(patch.digest)
    path = facts(tmp_path, GOOD)
    given = ["--model", model]
    asked = [*given, "--facts", path, "--all-facts"]
    commands = (
        ["probe", *asked, "-p", "rewrite", "--on", files[0], "--patch", files[2]],
        ["edit", *asked, "-o", "ft_l", "--on", files[0], "--on", files[2], "--dry-run"],
        [
            "edit",
            *asked,
            "-o",
            "ft_l",
            "--on",
            files[0],
            "--on",
            files[2],
            "--save",
            tmp_path / "edited",
            "--overwrite",
        ],
        ["remove", *given, "--patch", files[0], "--patch", files[2], "--take-out", files[0]],
    )
    for command, named in zip(commands, (files[1], digests[1], digests[1][:12], files[1]), strict=True):
        assert f"--without {digests[1][:12]}" in editkit(*command, code=2).replace("\n", " ")
        editkit(*command, "--without", named, code=0)
    assert "is not on" in editkit(*commands[0], "--without", files[0], code=2), "another patch waives nothing"
    output = editkit(*commands[0], "--without", "nowhere", code=2)
    assert "--without nowhere is no file of a patch and no digest of one (12 to 64 hexadecimal digits" in output
    made = load_patch(tmp_path / "edited" / "editkit_patch.safetensors")
    assert made.provenance.notes["on_top_of"] == [digests[0], digests[2]]


def test_the_exit_code_of_an_edit_says_that_it_was_saved_and_the_help_says_so(editkit, tmp_path, model):
    path = facts(tmp_path, GOOD)
    told = editkit(
        "edit", "--facts", path, "--model", model, "-o", "ft_l", "--all-facts", "--save", tmp_path / "e", code=0
    )
    assert "0 of 1 fact" in told and "did not take" in told and (tmp_path / "e" / "model.safetensors").exists()
    for command in ("edit", "unlearn"):
        codes = " ".join(editkit(command, "--help", code=0).split())
        assert "0 it was saved (what it prints says whether it took" in codes


def test_a_dry_run_says_what_it_takes_and_saves_nothing(editkit, tmp_path, model):
    path = facts(tmp_path, GOOD, GOOD | {"subject": "Peru", "object": "Lima"})
    given = ["edit", "--facts", path, "--model", model, "--operator", "ft_l", "--all-facts"]
    told = " ".join(editkit(*given, "--dry-run", code=0).split())
    for part in ("settings from", "facts 2", "mlp.down_proj.weight", "s a fact", "weights move by"):
        assert part in told
    assert "Give --save FOLDER, or --dry-run" in editkit(*given, code=2)
    assert {each.name for each in tmp_path.iterdir()} == {"facts.jsonl", "cache"} & {each.name for each in tmp_path.iterdir()}  # fmt: skip


def test_every_fact_that_cannot_be_edited_is_named_before_anything_is_done(editkit, tmp_path, model):
    long = GOOD | {"prompt": "word " * 5000 + "{} is", "subject": "Peru", "object": "Lima"}
    path = facts(tmp_path, GOOD, long, long | {"subject": "Chad"})
    output = editkit("edit", "--facts", path, "--model", model, "--operator", "ft_l", "--all-facts", "--save", tmp_path / "x", code=2)  # fmt: skip
    assert "2 facts cannot be edited" in output and "facts/2:" in output and "facts/3:" in output
    assert not (tmp_path / "x").exists()


def test_what_will_be_done_is_told_before_it_is(editkit, tmp_path, model, monkeypatch):
    """Of a long run also how long: for that its first facts are tried."""
    path = facts(tmp_path, GOOD)
    given = ["edit", "--facts", path, "--model", model, "--all-facts", "--operator", "ft_l", "--save"]
    told = editkit(*given, tmp_path / "a", code=0)
    assert "mlp.down_proj.weight" in told and "s a fact" not in told
    assert told.index("Plan") < told.index("asked by the fact's own prompt")
    monkeypatch.setattr(commands, "LONG", 1)
    assert "s a fact" in editkit(*given, tmp_path / "b", code=0)


def test_settings_are_set_above_the_preset(editkit, tmp_path, model):
    path = facts(tmp_path, GOOD)
    given = ["edit", "--facts", path, "--model", model, "--all-facts", "--operator"]
    guard = [
        "--set",
        "of.name=ft_l",
        "--set",
        "of.settings.layer=1",
        "--set",
        "of.settings.steps=2",
        "--set",
        "keep=0.5",
    ]
    editkit(*given, "rect", *guard, "--save", tmp_path / "e", code=0)
    kept = load_patch(tmp_path / "e" / PATCH_FILE).provenance.settings
    assert (kept["keep"], kept["of"]) == (0.5, {"name": "ft_l", "settings": {"layer": 1, "steps": 2}})
    for wrong in ("layer", "layer 1=2", "=3"):
        assert "is not NAME=VALUE" in editkit(*given, "ft_l", "--set", wrong, "--save", tmp_path / "x", code=2)
    assert "'leyer'" in editkit(*given, "ft_l", "--set", "leyer=1", "--save", tmp_path / "x", code=2)
    assert "--set needs one --operator" in editkit("audit", "--set", "layer=1", code=2)
    assert not (tmp_path / "x").exists()


def test_settings_are_searched_on_the_model_where_that_is_asked_for(editkit, tmp_path, model, monkeypatch):
    import tomllib

    monkeypatch.setattr("editkit.auto._Search._shares", lambda self, patches: (1.0, 0.5, None))  # nothing takes here
    path = facts(tmp_path, GOOD)
    given = ["edit", "--facts", path, "--model", model, "--operator", "ft_m", "--all-facts", "--save", tmp_path / "e"]
    assert "settings from auto: layer" not in editkit(*given, "--preset", "published", code=0)
    told = " ".join(editkit(*given[:-1], tmp_path / "auto", "--preset", "auto", code=0).split())
    assert "auto: layer" in told and "built-in facts" in told
    assert "no --preset 'best'; there is published, auto" in editkit(*given, "--preset", "best", code=2)
    assert "--preset needs --operator" in editkit("audit", "--preset", "auto", code=2)
    spec = ["--facts", path, "--model", model, "--all-facts", "--operator", "ft_m", "--out", tmp_path / "run"]
    editkit("audit", *spec, "--preset", "auto", code=3)
    settled = tomllib.loads((tmp_path / "run" / "spec.toml").read_text())["operators"][0]
    assert settled["preset"] == "published" and settled["settings"]["layer"] in range(3)
