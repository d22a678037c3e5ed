"""EasyEdit's code on our model: what it expects is made so while it runs, and all is put back after it."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from editkit.edit._easyeditor_methods import Method
from editkit.edit._easyeditor_source import Loaded
from editkit.errors import EditkitError, MethodError
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.moments import Moment
from editkit.patch import Delta, DenseDelta, LowRankDelta
from editkit.undo import Block, Undo

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_backward_hooks",
)


# -- the model, given back as it was --


def lent(handle: ModelHandle, names: Sequence[str]) -> Block[Mapping[str, Tensor]]:
    """The model may be changed within the block: the named parameters, and flags, gradients, modes, hooks and names of
    all. Gives copies of the named parameters."""

    def open(undo: Undo) -> Mapping[str, Tensor]:
        model = handle.model
        before = {name: handle.parameter(name).detach().clone() for name in names}
        for name, value in before.items():
            undo.callback(_overwrite, handle.parameter(name), value)
        for parameter in model.parameters():
            undo.callback(setattr, parameter, "grad", parameter.grad)
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.grad = None
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
            for hooks in HOOKS:
                undo.callback(_refill, getattr(module, hooks), dict(getattr(module, hooks)))
        undo.callback(_refill, vars(model.config), dict(vars(model.config)))
        undo.callback(setattr, model, "name_or_path", getattr(model, "name_or_path", ""))
        # Its sampling cuts the attention mask to the new token, which is right only for models that it gives no mask.
        model.name_or_path = "llama"
        return before

    return Block(open)


@torch.no_grad()
def _overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def _refill(kept: dict[Any, Any], content: Mapping[Any, Any]) -> None:
    kept.clear()
    kept.update(content)


# -- what its code expects --


def seeded(seed: int, device: torch.device) -> Block[None]:
    """torch's global random numbers, which its methods draw from, come from `seed` and are as before afterwards."""

    def open(undo: Undo) -> None:
        for generator in _generators(device):
            undo.callback(generator.set_state, generator.get_state())
            generator.manual_seed(seed)

    return Block(open)


def _generators(device: torch.device) -> list[torch.Generator]:
    own = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    return [torch.default_generator, *own]


class OnDevice(TorchFunctionMode):
    """Within it "cuda:N", which EasyEdit writes for any device, is the model's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.said = device, torch.device("cuda", device.index or 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(self._real, args), **{key: self._real(value) for key, value in (kwargs or {}).items()})

    def _real(self, value: Any) -> Any:
        same = isinstance(value, str | torch.device) and (value == str(self.said) or value == self.said)
        return self.device if same else value


def tokenizer_for(handle: ModelHandle, settings: Mapping[str, Any]) -> Any:
    """A copy of the tokenizer that pads where EasyEdit reckons with it; pad and unknown token are set where lacking."""
    tokenizer = copy.deepcopy(handle.tokenizer)
    tokenizer.padding_side = "left" if settings.get("objective_optimization") == "target_new" else "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.unk_token is None:
        tokenizer.unk_token = tokenizer.pad_token
    return tokenizer


def expect_tuples(nethook: ModuleType, blocks: Sequence[str]) -> None:
    """Blocks give a tensor today and gave a tuple when EasyEdit was written: its hooks see a tuple again, and what they
    give back goes on as the tensor in it."""
    names = frozenset(blocks)

    class Trace(nethook.Trace):  # type: ignore[misc]
        def __init__(self, module: nn.Module, layer: Any = None, **kwargs: Any) -> None:
            edit = kwargs.pop("edit_output", None)
            self.of_block = layer in names
            if edit and self.of_block:
                edit = _within_tuple(nethook, edit)
            super().__init__(module, layer, edit_output=edit, **kwargs)

        @property
        def output(self) -> Any:
            return as_tuple(self.kept) if self.of_block else self.kept

        @output.setter
        def output(self, value: Any) -> None:
            self.kept = value

    nethook.Trace = Trace  # type: ignore[attr-defined]


def _within_tuple(nethook: ModuleType, edit: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def edited(output: Any, layer: Any) -> Any:
        given = nethook.invoke_with_optional_args(edit, output=as_tuple(output), layer=layer)
        return given[0] if isinstance(output, Tensor) else given

    return edited


def as_tuple(output: Any) -> Any:
    return (output,) if isinstance(output, Tensor) else output


def fill_moments(method: Method, own: Loaded, handle: ModelHandle, moments: Mapping[int, Moment]) -> None:
    """Its cache of covariances holds ours before it looks, so that it reads no Wikipedia."""
    module = own.module(f"models.{method.folder}.{method.moments}")
    of = str(handle.model.config._name_or_path).replace("/", "_")
    for layer, moment in moments.items():
        key = (of, handle.arch.path("mlp_out", layer))
        if hasattr(module, "inv_mom2_cache"):
            module.inv_mom2_cache[key] = torch.linalg.inv(moment.matrix).float().to(handle.device)
        else:
            module.COV_CACHE[key] = moment.matrix.float()


def project(method: Method, own: Loaded, handle: ModelHandle, tokenizer: Any, hparams: Any) -> None:
    """Projections by the method's own function, which it would write to a file in the working directory."""
    module = own.module(f"models.{method.folder}.{method.moments}")
    found = [module.get_project(handle.model, tokenizer, layer, hparams) for layer in hparams.layers]
    module.P, module.P_loaded = torch.stack(found), True  # type: ignore[attr-defined]


# -- one run --


@dataclass(frozen=True, slots=True)
class Run:
    """A method that is loaded, with its hyperparameters."""

    name: str
    method: Method
    own: Loaded
    hparams: Any
    tokenizer: Any

    def on(self, handle: ModelHandle, edits: Sequence[Edit], tell: Callable[[int], None]) -> list[Mapping[str, Any]]:
        """Change the handle's model; gives what the method's own function gave, call by call."""
        apply = getattr(self.own.package, self.method.apply)
        given = _recorded(apply.__globals__, self.method.execute)
        parts = [[edit] for edit in edits] if self.method.alone else [[*edits]]
        done = 0
        for part in parts:
            tell(done)
            with theirs(self.name):
                apply(handle.model, self.tokenizer, [self._request(edit) for edit in part], self.hparams)
            done += len(part)
        tell(done)
        return given

    def _request(self, edit: Edit) -> dict[str, Any]:
        """As EasyEdit has it. It puts the space before the target by itself."""
        prompt = edit.fact.prompt if self.method.template else edit.fact.text
        return {
            "prompt": prompt,
            "subject": edit.fact.subject,
            "target_new": edit.target_new.strip(),
            "ground_truth": edit.fact.object,
        }


@contextlib.contextmanager
def theirs(name: str) -> Iterator[None]:
    """An error in EasyEdit's code is told in one line, and is a request that the method finds no change for."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it calls transformers as one did in 2023
            yield
    except (EditkitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise MethodError(
            f"EasyEdit's {name} stopped: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _recorded(module: dict[str, Any], function: str) -> list[Mapping[str, Any]]:
    """What a function of a module gives, from now on, call by call."""
    given: list[Mapping[str, Any]] = []
    inner = module[function]

    def record(*arguments: Any, **named: Any) -> Any:
        found = inner(*arguments, **named)
        given.append(dict(found))
        return found

    module[function] = record
    return given


def deltas_of(
    handle: ModelHandle, before: Mapping[str, Tensor], given: Sequence[Mapping[str, Any]]
) -> dict[str, Delta]:
    """What the run has added to each parameter: the method's own factors where it gives such, else the difference."""
    return {
        name: _factors([each[name] for each in given if name in each]) or _difference(handle, name, value)
        for name, value in before.items()
    }


def _factors(found: Sequence[Any]) -> LowRankDelta | None:
    """Pairs (key side, value side), each a vector or one column an edit, as left (out, n) and right (n, in)."""
    if not found or not all(isinstance(each, tuple) and len(each) == 2 for each in found):
        return None
    keys, values = ([part.reshape(len(part), -1).float() for part in side] for side in zip(*found, strict=True))
    return LowRankDelta(torch.cat(values, 1).cpu(), torch.cat(keys, 1).T.cpu().contiguous())


def _difference(handle: ModelHandle, name: str, before: Tensor) -> DenseDelta:
    change = handle.parameter(name).detach() - before
    return DenseDelta((change.T if handle.is_transposed(name) else change).float().cpu().contiguous())


def check_finite(name: str, deltas: Mapping[str, Delta]) -> None:
    for parameter, delta in deltas.items():
        if not all(bool(tensor.isfinite().all()) for tensor in delta.tensors().values()):
            raise MethodError(f"EasyEdit's {name} gave values for {parameter!r} that are not finite")
