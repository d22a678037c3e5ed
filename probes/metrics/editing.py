"""Does an edit take, reach other wordings and consequences, and leave the neighbours alone.

Three protocols stand side by side: `_success` by probability (p(new) > p(old), as in CounterFact; Meng et al. 2022,
arXiv:2202.05262), `_accuracy` by the most likely tokens under teacher forcing, `_generation` by the greedy text. Unlike
CounterFact's, none of the three counts a question as a success at which the model writes degenerate text, however
likely the new object is; where lower is better such a question does not count.
"""

from __future__ import annotations

import numpy as np

from probes.estimate import Array
from probes.metrics._marks import argmax, contrast, generation, harmonic, is_babble, is_class, kept, unless_babble
from probes.metrics._metric import Side, combined, per_case
from probes.verdict import Class, Verdict


@per_case("edit", ["rewrite"], better="higher")
def efficacy_success(verdict: Verdict, side: Side) -> float | None:
    """At the edit's own prompt, how often is the new object likelier than the old one?"""
    return contrast(verdict, side)


@per_case("edit", ["rewrite"], better="higher")
def efficacy_accuracy(verdict: Verdict, side: Side) -> float | None:
    """At the edit's own prompt, how often is every token of the new object the most likely one?"""
    return argmax(verdict, side)


@per_case("edit", ["rewrite"], better="higher")
def efficacy_generation(verdict: Verdict, side: Side) -> float | None:
    """At the edit's own prompt, how often does the model write the new object?"""
    return generation(verdict, side)


@per_case("edit", ["rewrite"], better="higher", unit="nats")
def efficacy_magnitude(verdict: Verdict, side: Side) -> float | None:
    """At the edit's own prompt, how far is the new object ahead of the old one in log-probability per token?

    Where the model writes degenerate text it is ahead by nothing: a lead counts as 0, a lag as it is.
    """
    margin = verdict.margin_before if side == "before" else verdict.margin_after
    return min(margin, 0.0) if margin is not None and is_babble(verdict, side) else margin


@per_case("edit", ["rephrase"], better="higher")
def generalization_success(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is the new object likelier than the old one?"""
    return contrast(verdict, side)


@per_case("edit", ["rephrase"], better="higher")
def generalization_accuracy(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often is every token of the new object the most likely one?"""
    return argmax(verdict, side)


@per_case("edit", ["rephrase"], better="higher")
def generalization_generation(verdict: Verdict, side: Side) -> float | None:
    """In other wordings, how often does the model write the new object?"""
    return generation(verdict, side)


@per_case("edit", ["neighborhood"], better="higher", baseline=False)
def specificity_success(verdict: Verdict, side: Side) -> float | None:
    """Of the neighbours' objects that were the likelier ones, how many still are?"""
    return kept(contrast, verdict, side)


@per_case("edit", ["neighborhood"], better="higher", baseline=False)
def specificity_accuracy(verdict: Verdict, side: Side) -> float | None:
    """Of the neighbours' objects that were the most likely tokens, how many still are?"""
    return kept(argmax, verdict, side)


@per_case("edit", ["neighborhood"], better="higher", baseline=False)
def specificity_generation(verdict: Verdict, side: Side) -> float | None:
    """Of the neighbours' facts that the model wrote rightly, how many does it still?"""
    return kept(generation, verdict, side)


@per_case("edit", ["multi_hop"], better="higher")
def portability_success(verdict: Verdict, side: Side) -> float | None:
    """In questions that need the edited fact, how often is its new consequence likelier than the old one?"""
    return contrast(verdict, side)


@per_case("edit", ["multi_hop"], better="higher")
def portability_accuracy(verdict: Verdict, side: Side) -> float | None:
    """In questions that need the edited fact, how often is its new consequence the most likely?"""
    return argmax(verdict, side)


@per_case("edit", ["multi_hop"], better="higher")
def portability_generation(verdict: Verdict, side: Side) -> float | None:
    """In questions that need the edited fact, how often does the model write its new consequence?"""
    return generation(verdict, side)


@combined("edit", [efficacy_generation, generalization_generation, specificity_generation], better="higher")
def edit_score(efficacy: Array, generalization: Array, specificity: Array) -> Array:
    """In one number, how well does the edit take, reach other wordings and spare the neighbours, as written?

    The harmonic mean: one share near zero brings it down. 0 on the unchanged model, unless it knew the new object.
    """
    return harmonic(efficacy, generalization, specificity)


@combined("edit", [efficacy_success, generalization_success, specificity_success], better="higher")
def edit_score_success(efficacy: Array, generalization: Array, specificity: Array) -> Array:
    """In one number, how well does the edit take, reach other wordings and spare the neighbours, by probability?

    CounterFact's S, but its specificity counts only neighbours that were right before the edit.
    """
    return harmonic(efficacy, generalization, specificity)


@per_case("edit", ["rephrase", "keyword_emphasis"], better="lower")
def reversion(verdict: Verdict, side: Side) -> float | None:
    """When the question is reworded or its key words are stressed, how often does the old object come back?

    Of the keyword-emphasis cases only those with stressed key words count, not the plain wording or the controls.
    Degenerate text does not count: it shows neither that the old object is gone nor that it is back.
    """
    if verdict.case.probe == "keyword_emphasis" and not verdict.case.variant.startswith("key:"):
        return None
    return unless_babble(verdict, side, is_class(verdict, side, Class.OLD))


@combined("edit", [generalization_generation], better="lower", across_strata=True)
def popularity_gap(*strata: Array) -> Array:
    """How far apart are the best and the worst popularity stratum in generalization?

    The largest minus the smallest of several noisy shares is above 0 even where all strata are alike, the more so the
    fewer facts a stratum has: read the strata's own intervals beside it. Needs two strata, and one of them in which the
    edit generalizes at all: strata that fail alike, by degenerate text or otherwise, are no small gap.
    """
    if len(strata) < 2:
        return np.asarray(np.nan)
    best = np.max(strata, axis=0)
    return np.where(best > 0, best - np.min(strata, axis=0), np.nan)
