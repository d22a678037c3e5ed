"""KN, knowledge neurons, on which the old object hangs (Dai et al. 2022,
https://arxiv.org/abs/2104.08696, section 5.1).

    v ← v ± (λ₂ t' − λ₁ t)    v: value slot of a neuron, a column of `mlp_out` (d_out); t, t': the unembeddings of the
                              old object and of the new one; ±: the sign of the neuron's activation

The neurons are those on which the old object hangs at the edit's prompt (editkit/locate/knowledge_neurons.py). That a
fact hangs on them does not mean that it can be changed there (Hase et al. 2023, https://arxiv.org/abs/2301.04213). On
SmolLM2-135M (4 facts, the preset) the old object goes, log p from -0.3 to -14, but the new one is said of 1 fact in 4.

Differs from the authors' code:
- a causal model: t is the row of the unembedding, for a word of several tokens that of the first in which the two
  objects differ, and the neurons are found where that token is said (theirs: BERT, the word embedding of one token);
- the sign: a neuron of a gated MLP is as often negative, and then its slot works the other way round (theirs: none, for
  after GELU an active neuron is positive);
- neurons are shared by the prompt after texts that the model writes, for an operator sees no other wording (theirs: by
  the prompts of ParaRel for the same fact);
- EasyEdit's copy takes what the model says for the old object, embeddings of all tokens one after another, λ of 1 and 1
  and one prompt; here the old object is the fact's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edit._locate_then_edit import Contexts
from editkit.edit._search import Progress
from editkit.errors import InputError, MethodError
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.locate.knowledge_neurons import KnowledgeNeurons, Neuron
from editkit.operators import EDITS, provenance_of
from editkit.patch import LowRankDelta, WeightPatch
from editkit.tokens import encode_pair
from editkit.wide import computed_in_float32


@EDITS.register("knowledge_neurons")
@dataclass(frozen=True, slots=True)
class KN:
    """`old_weight` is λ₁, `new_weight` λ₂: how much of the old object's unembedding is taken from a value slot and of
    the new one's put there; larger moves the answer and its neighbours further. `neurons`: how they are found;
    `contexts`: what is put before the prompt to find them."""

    name: ClassVar[str] = "knowledge_neurons"

    old_weight: float = 1.0
    new_weight: float = 8.0
    neurons: KnowledgeNeurons = field(default_factory=KnowledgeNeurons)
    contexts: Contexts = field(default_factory=lambda: Contexts(lengths=(10,), each=4))

    def __post_init__(self) -> None:
        if self.old_weight < 0 or self.new_weight < 0:
            raise InputError(f"old_weight {self.old_weight} and new_weight {self.new_weight} must be at least 0")

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A low-rank patch of each layer's matrix that has neurons of an edit, one rank a neuron; `notes` name the
        neurons. All are found in the model as it is. Raises MethodError, which names the subject, where no neuron
        speaks for the old object."""
        check_edits(edits)
        before = self.contexts.before(handle, seed)
        slots: list[tuple[Neuron, Tensor]] = []
        notes = []
        for number, edit in enumerate(edits):
            if progress:
                progress("finding neurons", number, len(edits))
            found = self._found(handle, edit, before)
            slots += found
            notes.append([[neuron.layer, neuron.index] for neuron, _ in found])
        if progress:
            progress("finding neurons", len(edits), len(edits))
        about = provenance_of(self.name, self, handle, edits, seed, neurons=notes)
        return WeightPatch(_deltas(handle, slots), about)

    def touches(self, handle: ModelHandle) -> list[str]:
        """The names of the matrices that it may change."""
        return [handle.weight_name("mlp_out", layer) for layer in range(handle.layers)]

    def _found(self, handle: ModelHandle, edit: Edit, before: Sequence[str]) -> list[tuple[Neuron, Tensor]]:
        """The neurons of an edit, and what is added to the value slot of each."""
        parted = [_parted(handle, edit, context) for context in before]
        seen = self.neurons.attributed(handle, [(ids, old) for ids, old, _ in parted])
        found = self.neurons.of(seen.scores)
        if not found:
            raise MethodError(
                f"cannot edit {edit.fact.subject!r}: no neuron makes {edit.fact.object!r} more likely at its prompt"
            )
        _, old, new = parted[0]
        change = self._change(handle, old[0], new[0])
        return [(each, change * seen.activations[0, each.layer, each.index].sign()) for each in found]

    def _change(self, handle: ModelHandle, old: int, new: int) -> Float[Tensor, " d_out"]:
        rows = handle.model.get_output_embeddings().weight.detach()
        return self.new_weight * rows[new].float() - self.old_weight * rows[old].float()


def _parted(handle: ModelHandle, edit: Edit, context: str) -> tuple[list[int], list[int], list[int]]:
    """The prompt up to where the objects part, and what is left of the old and of the new one: a token at least."""
    prompt = context + edit.fact.text
    ids, old = encode_pair(handle.tokenizer, prompt, edit.fact.object)
    _, new = encode_pair(handle.tokenizer, prompt, edit.target_new)
    alike = 0
    while alike < min(len(old), len(new)) - 1 and old[alike] == new[alike]:
        alike += 1
    return [*ids, *old[:alike]], old[alike:], new[alike:]


def _deltas(handle: ModelHandle, slots: Iterable[tuple[Neuron, Tensor]]) -> Mapping[str, LowRankDelta]:
    """What is added to columns of matrices, as factors: a column each, and which one it is added to."""
    by_layer: dict[int, list[tuple[int, Tensor]]] = {}
    for neuron, change in slots:
        by_layer.setdefault(neuron.layer, []).append((neuron.index, change))
    deltas: dict[str, Any] = {}
    for layer, own in sorted(by_layer.items()):
        name = handle.weight_name("mlp_out", layer)
        right = torch.zeros(len(own), handle.matrix(name).shape[1], device=handle.device)
        right[range(len(own)), [index for index, _ in own]] = 1
        deltas[name] = LowRankDelta(torch.stack([change for _, change in own], 1), right)
    return deltas
