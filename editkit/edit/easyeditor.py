"""EasyEdit's own code on our model (Wang et al. 2023, https://arxiv.org/abs/2308.07269), so that its edits can be
audited, compared and undone like ours.

    Δ = what EasyEdit's `apply_…_to_model` adds to the model

It runs whatever `easyeditor` Python finds: the release (`pip install --no-deps easyeditor==0.0.1.dev0`; its pins are of
2023 and cannot be resolved on Python 3.11) or a checkout on the import path. Nothing is patched in its files. For the
time of a call its modules are imported under another name, without the package's `__init__`; "cuda:N" means the model's
device; its hooks see tuples from blocks; its random numbers come from `seed`; what it prints is swallowed.

What runs, with the hyperparameters of EasyEdit's own files and the layers of our presets unless `hparams` says
otherwise:

    ROME, FT            release and checkout
    MEMIT               release and checkout, with our second moment as its covariance (no Wikipedia is read)
    R-ROME              checkout
    EMMET, AlphaEdit, MEMIT-FE, CORE, EAMET, SPHERE
                        checkout, with our second moment
    all others          say in one line why not

ROME and R-ROME use no covariance, as in all of EasyEdit's files: Δ = r k̄ᵀ / (k̄ᵀ k); `mom2_adjustment = true` gives them
our second moment.

On SmolLM2-135M, one fact, all ten took with these settings (AlphaEdit at -0.5 nats, CORE at -0.07, the others at -0.01
or better).

Differs from the authors' code, run by itself:
- the model's attention mask is left out while contexts are sampled (its code cuts the mask to the newest token, which
  transformers 5 reads as a mask of everything before it);
- a tokenizer without pad or unknown token is given one, in a copy;
- only float32 models, and no square matrix that its code could not tell the orientation of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from editkit.edit import _easyeditor_methods as methods
from editkit.edit import _easyeditor_run as running
from editkit.edit._easyeditor_source import Loaded, find_source, loaded
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.moments import MomentSettings, second_moments
from editkit.operators import EDITS, provenance_of
from editkit.patch import Delta, WeightPatch
from editkit.wide import computed_in_float32

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much


@EDITS.register("easyeditor")
@dataclass(frozen=True, slots=True)
class EasyEditor:
    """`method`: EasyEdit's name of it; `hparams`: values on top of its hyperparameters, by EasyEdit's names; `moments`:
    what a method that asks for a covariance is given."""

    name: ClassVar[str] = "easyeditor"

    method: str = "ROME"
    hparams: dict[str, Any] = field(default_factory=dict)
    moments: MomentSettings = field(default_factory=MomentSettings)

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """Low-rank where the method gives factors, else dense; `notes` tell which EasyEdit, and all hyperparameters.

        Raises UnableError where there is no EasyEdit, or the method or model cannot run; MethodError where it fails.
        """
        check_edits(edits)
        for edit in edits:
            methods.check_text(edit.fact.prompt, edit.target_new)
        method, settings = methods.method_named(self.method), self._settings(handle)
        names = methods.parameters(handle, self.method, settings)
        methods.check_model(handle, self.method, names)
        source = find_source()
        layers = methods.measured_layers(handle, self.method, settings)
        with loaded(source, method.folder, self.method) as own:
            hparams = self._hyperparams(own, settings)
            moments = second_moments(handle, layers, self.moments, progress=progress) if layers else {}
            running.fill_moments(method, own, handle, moments) if moments else None
            deltas = self._deltas(handle, edits, names, own, hparams, seed, progress)
            notes = {
                "easyeditor": {"version": source.version, "path": str(source.folder), "code": own.digest()},
                "hparams": {key: value for key, value in vars(hparams).items()},
                "moments": {str(layer): moment.key for layer, moment in moments.items()},
            }
        return WeightPatch(deltas, provenance_of(self.name, self, handle, edits, seed, **notes))

    def touches(self, handle: ModelHandle) -> tuple[str, ...]:
        """Names of the parameters that it changes."""
        return methods.parameters(handle, self.method, self._settings(handle))

    def _settings(self, handle: ModelHandle) -> dict[str, Any]:
        return methods.settings_for(handle, self.method, self.hparams)

    def _hyperparams(self, own: Loaded, settings: dict[str, Any]) -> Any:
        kind = getattr(own.package, methods.METHODS[self.method].hyperparams)
        return kind(**methods.fitted(kind, settings, self.hparams, f"EasyEdit's {self.method}"))

    def _deltas(
        self,
        handle: ModelHandle,
        edits: Sequence[Edit],
        names: Sequence[str],
        own: Loaded,
        hparams: Any,
        seed: int,
        progress: Progress | None,
    ) -> dict[str, Delta]:
        def tell(done: int) -> None:
            if progress:
                progress(f"EasyEdit's {self.method}", done, len(edits))

        tokenizer = running.tokenizer_for(handle, vars(hparams))
        run = running.Run(self.method, methods.METHODS[self.method], own, hparams, tokenizer)
        running.expect_tuples(own.module("util.nethook"), [handle.arch.path("block", i) for i in range(handle.layers)])
        with (
            running.lent(handle, names) as before,
            running.seeded(seed, handle.device),
            torch.inference_mode(False),
            torch.enable_grad(),
            running.OnDevice(handle.device) if handle.device.type != "cuda" else contextlib.nullcontext(),
        ):
            if run.method.projects:
                with running.theirs(self.method):
                    running.project(run.method, own, handle, tokenizer, hparams)
            given = run.on(handle, edits, tell)
            deltas = running.deltas_of(handle, before, given)
        running.check_finite(self.method, deltas)
        return deltas
