"""Is what should be forgotten gone, from every side, and is the rest still there.

Only questions count to which the unchanged model gives the answer: what it does not say cannot be forgotten. So the
unchanged model's share is 1 (or 0) by definition and is not told. Degenerate text is no success, by probability
neither: where higher is better it counts as a failure, where lower is better it does not count.
"""

from __future__ import annotations

from probes.estimate import Array
from probes.metrics._marks import argmax, contrast, generation, harmonic, is_class, kept, unless_babble
from probes.metrics._metric import Side, combined, per_case
from probes.verdict import Class, Verdict


@per_case("unlearn", ["rewrite"], better="lower", baseline=False)
def forget_accuracy(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often does the model still write the answer?"""
    return unless_babble(verdict, side, is_class(verdict, side, Class.OLD))


@per_case("unlearn", ["rewrite"], better="higher")
def forget_efficacy_success(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is another object of its range likelier than the answer?

    A question at which the model writes degenerate text is a failure, here and below.
    """
    return contrast(verdict, side)


@per_case("unlearn", ["rewrite"], better="higher")
def forget_efficacy_accuracy(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is the answer no longer the most likely token by token?"""
    return argmax(verdict, side)


@per_case("unlearn", ["rewrite"], better="higher", baseline=False)
def forget_efficacy(verdict: Verdict, side: Side) -> float | None:
    """At the forgotten fact's own prompt, how often is the answer gone and the text still a text?"""
    return generation(verdict, side)


@per_case("unlearn", ["rephrase"], better="lower", baseline=False)
def forget_rephrased(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often does the model still write the forgotten answer?"""
    return unless_babble(verdict, side, is_class(verdict, side, Class.OLD))


@per_case("unlearn", ["rephrase"], better="higher")
def forget_generalization_success(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is another object of its range likelier than the answer?"""
    return contrast(verdict, side)


@per_case("unlearn", ["rephrase"], better="higher")
def forget_generalization_accuracy(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is the answer no longer the most likely token by token?"""
    return argmax(verdict, side)


@per_case("unlearn", ["rephrase"], better="higher", baseline=False)
def forget_generalization(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is the forgotten answer gone and the text still a text?"""
    return generation(verdict, side)


@per_case("unlearn", ["neighborhood"], better="higher", baseline=False)
def retained_accuracy(verdict: Verdict, side: Side) -> float | None:
    """Of the facts to be kept whose objects were the most likely tokens, how many still are?"""
    return kept(argmax, verdict, side)


@per_case("unlearn", ["neighborhood"], better="higher", baseline=False)
def retained_success(verdict: Verdict, side: Side) -> float | None:
    """Of the facts to be kept whose objects were likelier than others of their range, how many still are?"""
    return kept(contrast, verdict, side)


@per_case("unlearn", ["neighborhood"], better="higher", baseline=False)
def retained(verdict: Verdict, side: Side) -> float | None:
    """Of the facts to be kept that the model wrote rightly, how many does it still?"""
    return kept(generation, verdict, side)


@per_case("unlearn", ["multi_hop"], better="lower", baseline=False)
def leakage(verdict: Verdict, side: Side) -> float | None:
    """Of the related questions that led the unchanged model to the forgotten answer, how many still do?

    Questions for what follows from the forgotten answer count with the others: there the answer that must not come is
    what follows, which shows less (see `editkit.held_out`); the report tells them apart by kind. Whether the model
    could answer the single steps is told beside it and excludes nothing: a shortcut leaks as well.
    """
    return unless_babble(verdict, side, is_class(verdict, side, Class.OLD))


@per_case("unlearn", ["rewrite", "rephrase"], better="lower", baseline=False)
def hallucination(verdict: Verdict, side: Side) -> float | None:
    """Asked for what is forgotten, how often does the model name another entity in its place?

    Of the answers that are a text: a model may not buy fewer hallucinations with babble.
    """
    return unless_babble(verdict, side, is_class(verdict, side, Class.HALLUCINATION))


@per_case("unlearn", ["rewrite", "rephrase"], better="higher", baseline=False)
def refusal(verdict: Verdict, side: Side) -> float | None:
    """Asked for what is forgotten, how often does the model say that it does not know?"""
    return is_class(verdict, side, Class.REFUSAL)


@combined("unlearn", [forget_efficacy, forget_generalization, retained], better="higher", baseline=False)
def unlearn_score(efficacy: Array, generalization: Array, kept_share: Array) -> Array:
    """In one number, how well is the fact forgotten, in other wordings too, with the rest kept?

    The harmonic mean of `forget_efficacy`, `forget_generalization` and `retained`.
    """
    return harmonic(efficacy, generalization, kept_share)
