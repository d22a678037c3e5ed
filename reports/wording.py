"""How numbers, arms, metrics and answers are put into words: one place, so that all reports say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from probes.estimate import Estimate, Ruling
from probes.metrics import METRICS
from probes.verdict import Class, Verdict
from reports.record import Audit, Claim

NAMED = 5  # facts that a line names; of the others it says how many they are
NOT_MEASURED = "not measured"
BY_DEFINITION = "given by definition"

CLASSES: Mapping[Class, str] = MappingProxyType(
    {
        Class.OLD: "old answer",
        Class.NEW: "new answer",
        Class.HALLUCINATION: "another entity",
        Class.REFUSAL: "refusal",
        Class.DEGENERATE: "degenerate text",
        Class.OTHER: "something else",
    }
)
TONES: Mapping[Ruling, str] = MappingProxyType({Ruling.HOLDS: "good", Ruling.FAILS: "bad", Ruling.UNDECIDED: "open"})
_ARMS = {"single": "one fact at a time", "stacked": "all facts stacked", "joint": "all facts at once"}
ARMS_EXPLAINED: Mapping[str, str] = MappingProxyType(
    {
        "single": "Each fact changed alone in the unchanged model, questioned, and rolled back.",
        "stacked": "The changes left in the model one upon another, and questioned when all were in.",
        "joint": "One change for all facts together.",
    }
)
_STRATA = {
    "q1": "least popular quarter (q1)",
    "q2": "less popular quarter (q2)",
    "q3": "more popular quarter (q3)",
    "q4": "most popular quarter (q4)",
}
_VARIANTS = {
    **_STRATA,
    "plain": "as it stands",
    "composition": "two facts combined",
    "inverse": "asked the other way round",
    "consequence": "what follows from the fact",
    "premise": "a premise, a single step",
    "neighbour": "through a neighbour",
    "same relation": "same relation, another subject",
    "other relation": "another relation",
    "question": "as a question",
    "polite": "politely",
    "cloze": "with a gap to fill",
    "context": "after other text",
    "distractor": "after an unrelated sentence",
    "casing": "in other upper and lower case",
    "typo": "with a typing error",
    "level 1": "disputed",
    "level 2": "the old object asserted",
}
_PROBES = {
    "rewrite": "own prompt",
    "rephrase": "other wordings",
    "keyword_emphasis": "stressed key words",
    "multi_hop": "related questions",
    "neighborhood": "neighbours",
    "popularity": "same relation, by popularity",
    "fluency": "free text",
    "doubt": "under doubt",
}
_PROTOCOLS = {"success": "by probability", "accuracy": "by likeliest token", "generation": "as written"}
_TITLES = {
    "efficacy_magnitude": "Efficacy, lead in log-probability",
    "edit_score": "Edit score, as written",
    "edit_score_success": "Edit score, by probability",
    "reversion": "Old answer comes back",
    "popularity_gap": "Gap between popularity strata",
    "recovery_rate": "Recovered by key words",
    "recovery_random": "Recovered by random words",
    "recovery_template": "Recovered by the template alone",
    "emphasis_effect": "Key words beyond their controls",
    "degeneration": "Degenerate text",
    "fluency": "Variety of free text",
    "doubt_reversion": "Old answer comes back under doubt",
    "forget_accuracy": "Still writes the answer",
    "forget_efficacy": "Forgotten at its own prompt",
    "forget_rephrased": "Still writes it in other wordings",
    "forget_generalization": "Forgotten in other wordings",
    "retained": "Neighbours retained",
    "relation_kept": "Others of the relation kept",
    "leakage": "Leaks through related questions",
    "hallucination": "Names another entity instead",
    "refusal": "Says that it does not know",
}


def number(value: float | None, *, signed: bool = False) -> str:
    """The one way a number is written: two decimals, three where two would show a 0 or 1 that it is not."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    places = 2 if round(value, 2) not in (-1, 0, 1) or math.isclose(value, round(value), abs_tol=1e-12) else 3
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    return text.replace("-", "", 1).replace("+", "", 1) if not float(text) else text


def counted(n: int, groups: int) -> str:
    """ "16 facts", or "64 cases on 16 facts" where a fact has more than one."""
    facts = plural(groups, "fact")
    return facts if n == groups else f"{plural(n, 'case')} on {facts}"


def named(facts: Sequence[Any], most: int = NAMED) -> str:
    """Entries or records by subject and id, the first ones and how many more there are."""
    more = [f"{len(facts) - most:,} more"] if len(facts) > most else []
    told = [f"{each.fact.subject} ({each.id})" for each in facts[:most]] + more
    return " and ".join([", ".join(told[:-1]), told[-1]]) if len(told) > 1 else "".join(told)


def plural(n: int, word: str, many: str = "") -> str:
    return f"{n:,} {word if n == 1 else many or word + 's'}"


def asked_text(audit: Audit) -> str:
    """ "1,285 questions put before and after the change, judged as 1,425 cases"; as every report counts them."""
    asked = f"{plural(audit.questions(), 'question')} put before and after the change"
    twice = len(audit.judged) > audit.questions()
    return f"{asked}, judged as {plural(len(audit.judged), 'case')}" if twice else asked


def told(estimate: Estimate | None, *, signed: bool = False) -> str:
    """An estimate as every report writes it: "0.94 [0.79, 0.98], 64 cases on 16 facts"."""
    if estimate is None or estimate.value is None or not math.isfinite(estimate.value):
        return NOT_MEASURED
    value = number(estimate.value, signed=signed)
    if estimate.low is None or estimate.high is None:
        return f"{value}, no interval ({_too_little(estimate)})"
    ends = f"[{number(estimate.low, signed=signed)}, {number(estimate.high, signed=signed)}]"
    return f"{value} {ends}, {counted(estimate.n, estimate.groups)}"


def _too_little(estimate: Estimate) -> str:
    if estimate.groups < 2:
        return f"n = {estimate.groups}" if estimate.n == estimate.groups else f"n = 1, {plural(estimate.n, 'case')}"
    why = estimate.method.removeprefix("no interval: ")
    return f"{counted(estimate.n, estimate.groups)}: {why}"


def level_text(level: float) -> str:
    return f"{100 * level:g} %"


def p_text(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NOT_MEASURED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def demand(at_least: float | None, at_most: float | None) -> str:
    """ "≥ 0.90", "≤ 0.10", or both."""
    bars = [f"≥ {number(at_least)}"] if at_least is not None else []
    return " and ".join(bars + ([f"≤ {number(at_most)}"] if at_most is not None else []))


def ruling_text(claim: Claim, audit: Audit) -> str:
    """The ruling, and for an open one what it would take: facts, if enough of them would do, or a question at all."""
    why = _why_open(claim, audit) if claim.ruling is Ruling.UNDECIDED else ""
    return f"{claim.ruling.value} ({why})" if why else claim.ruling.value


def _why_open(claim: Claim, audit: Audit) -> str:
    if claim.estimate.value is None or not claim.estimate.n:
        return "no case counted" if was_asked(claim, audit) else "not asked"
    if within_demand(claim) and claim.needed is not None and claim.needed > claim.estimate.groups:
        return f"{plural(claim.needed, 'fact')} would do if all pass"
    return ""


def within_demand(claim: Claim) -> bool:
    """Whether what was measured is on the demanded side of the bar, whatever its interval says."""
    value = claim.estimate.value
    if value is None or not math.isfinite(value):
        return False
    return (claim.at_least is None or value >= claim.at_least) and (claim.at_most is None or value <= claim.at_most)


def was_asked(claim: Claim, audit: Audit) -> bool:
    """Whether a question of the kind that the claim rests on was put to its arm at all."""
    asked = {i.verdict.case.probe for i in audit.judged if (i.operator, i.arm) == (claim.operator, claim.arm)}
    probes = METRICS[claim.metric].probes if claim.metric in METRICS else ()
    return not asked.isdisjoint(probes) if probes else bool(asked)


def arms_told(arms: Sequence[str]) -> str:
    """ "one fact at a time, then all facts stacked"."""
    return ", then ".join(_ARMS.get(arm, arm) for arm in arms)


def arm_title(operator: str, arm: str) -> str:
    """ "rome, all facts stacked"."""
    return f"{operator}, {_ARMS.get(arm, arm)}" if arm else operator


def probe_title(probe: str) -> str:
    return _PROBES.get(probe, probe.replace("_", " "))


def variant_title(variant: str) -> str:
    """The wording of a case: "key:capitals" is "key words: capitals", "q4" the "most popular quarter (q4)"."""
    for prefix, title in (("key:", "key words: "), ("control:", "control: ")):
        if variant.startswith(prefix):
            return title + variant.removeprefix(prefix).replace(":", ": ").replace("_", " ")
    return _VARIANTS.get(variant, variant.replace("_", " "))


def stratum_title(stratum: str | None) -> str:
    """ "q1" is the "least popular quarter (q1)"; other strata are named as they are, none is a dash."""
    return _STRATA.get(stratum, stratum) if stratum else "–"


def metric_title(name: str) -> str:
    """A title for people; a metric without one of its own gets its name in words."""
    if name in _TITLES:
        return _TITLES[name]
    stem, _, protocol = name.rpartition("_")
    words = f"{_TITLES.get(stem, stem)}, {_PROTOCOLS[protocol]}" if stem and protocol in _PROTOCOLS else name
    return words[:1].upper() + words[1:].replace("_", " ")


def metric_question(name: str) -> str:
    return METRICS[name].question if name in METRICS else ""


def better(name: str) -> str:
    """ "Higher is better.", "Lower is better." or nothing, for a metric that this version does not know."""
    return f"{METRICS[name].better.capitalize()} is better." if name in METRICS else ""


def change_of_class(verdict: Verdict) -> str:
    """ "old answer → new answer"; what the answers are, by rule."""
    return f"{CLASSES[verdict.class_before]} → {CLASSES[verdict.class_after]}"
