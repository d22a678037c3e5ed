"""Is what should be forgotten gone, from every side, and is the rest still there.

A forgotten answer is no success if the model only babbles: `forget_efficacy`, `forget_generalization` and
`unlearn_score` count degenerate text as a failure; `forget_accuracy` and its like only ask whether the answer came.
"""

from __future__ import annotations

from probes.estimate import Array
from probes.metrics._marks import argmax, contrast, generation, harmonic, is_class, kept, opposite
from probes.metrics._metric import Side, combined, per_case
from probes.verdict import Class, Verdict


@per_case("unlearn", ["rewrite"], better="lower")
def forget_accuracy(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often does the model still write the answer?"""
    return is_class(verdict, side, Class.OLD)


@per_case("unlearn", ["rewrite"], better="lower")
def forget_argmax(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is the answer still the most likely token by token?"""
    return opposite(argmax(verdict, side))


@per_case("unlearn", ["rewrite"], better="higher")
def forget_success(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is another object of its range likelier than the answer?"""
    return contrast(verdict, side)


@per_case("unlearn", ["rewrite"], better="higher")
def forget_efficacy(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is the answer gone and the text still a text?"""
    return generation(verdict, side)


@per_case("unlearn", ["rephrase"], better="lower")
def forget_rephrased(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often does the model still write the forgotten answer?"""
    return is_class(verdict, side, Class.OLD)


@per_case("unlearn", ["rephrase"], better="higher")
def forget_generalization(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is the forgotten answer gone and the text still a text?"""
    return generation(verdict, side)


@per_case("unlearn", ["neighborhood"], better="higher", baseline=False)
def retained(verdict: Verdict, side: Side) -> float | None:
    """Of the facts to be kept that the model wrote rightly, how many does it still?"""
    return kept(generation, verdict, side)


@per_case("unlearn", ["multi_hop"], better="lower")
def leakage(verdict: Verdict, side: Side) -> float | None:
    """Of the related questions over which the forgotten answer can be reached, how many still reach it?

    A question counts where the unchanged model reaches the answer, or the changed one does for the first time.
    """
    return is_class(verdict, side, Class.OLD)


@per_case("unlearn", ["rewrite", "rephrase"], better="lower")
def hallucination(verdict: Verdict, side: Side) -> float | None:
    """Asked for what is forgotten, how often does the model name another entity in its place?"""
    return is_class(verdict, side, Class.HALLUCINATION)


@per_case("unlearn", ["rewrite", "rephrase"], better="higher")
def refusal(verdict: Verdict, side: Side) -> float | None:
    """Asked for what is forgotten, how often does the model say that it does not know?"""
    return is_class(verdict, side, Class.REFUSAL)


@combined("unlearn", [forget_efficacy, forget_generalization, retained], better="higher")
def unlearn_score(efficacy: Array, generalization: Array, kept_share: Array) -> Array:
    """In one number, how well is the fact forgotten, in other wordings too, with the rest kept?

    The harmonic mean of `forget_efficacy`, `forget_generalization` and `retained`.
    """
    return harmonic(efficacy, generalization, kept_share)
