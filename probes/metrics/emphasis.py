"""Do stressed key words bring the old answer back, beyond what any other prompt of that form does.

After unPact (the recovery of "forgotten" answers by emphasising key tokens), with controls that it lacks: as many
stressed random words, and the template with no words of the question in it. Only facts count whose old answer came
before the change and does not come after it at the plain wording, where the changed model still writes a text: babble
has forgotten nothing. A stressed wording or a control that is answered with babble is left out as well, as if it had
not been asked: that the old answer does not stand in it shows nothing. A fact of which no wording is left does not
count. For the recoveries every kind gets the same number of tries k, the smallest number of wordings left of a kind: of
m wordings of which c bring the old answer, the share of k-subsets with at least one is 1 - C(m - c, k) / C(m, k); for
k = m that is "any of them".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from probes.metrics._marks import answer_class, is_babble
from probes.metrics._metric import Side, per_group
from probes.verdict import Class, Verdict

PROBE = "keyword_emphasis"
PLAIN, KEY, RANDOM, TEMPLATE = "plain", "key:", "control:random_words:", "control:template_only:"
ARMS = (KEY, RANDOM, TEMPLATE)


def _took(verdicts: Sequence[Verdict]) -> bool:
    """The old answer came at every plain wording, and another text comes at each now."""
    plain = [v for v in verdicts if v.case.variant == PLAIN]
    lost = (v.class_before is Class.OLD and v.class_after not in (Class.OLD, Class.DEGENERATE) for v in plain)
    return bool(plain) and all(lost)


def _written(verdicts: Sequence[Verdict], side: Side) -> dict[str, list[Verdict]]:
    """What was asked in each arm and answered with a text."""
    texts = [v for v in verdicts if not is_babble(v, side)]
    return {kind: [v for v in texts if v.case.variant.startswith(kind)] for kind in ARMS}


def _recovered(verdicts: Sequence[Verdict], kind: str, side: Side) -> float | None:
    """The expected best of k wordings of this kind: 1 where the old answer comes back."""
    arms = _written(verdicts, side)
    asked = arms[kind]
    if not asked or not _took(verdicts):
        return None
    tries = min(len(arm) for arm in arms.values() if arm)
    back = sum(answer_class(v, side) is Class.OLD for v in asked)
    return 1.0 - comb(len(asked) - back, tries) / comb(len(asked), tries)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_rate(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again when the key words are stressed?"""
    return _recovered(verdicts, KEY, side)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_random(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again when as many other words are stressed?"""
    return _recovered(verdicts, RANDOM, side)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_template(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again under the bare template of the emphasis?"""
    return _recovered(verdicts, TEMPLATE, side)


@per_group("both", [PROBE], better="lower", unit="difference of shares", baseline=False)
def emphasis_effect(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """By how many of a fact's wordings do stressed key words bring the old answer back beyond the better control?

    Only wordings count that lead the unchanged model to the old answer in all three arms, and the changed one to a text
    in all three: one that a model gets lost in cannot bring anything back.
    """
    if not _took(verdicts):
        return None
    written = _written(verdicts, side).items()
    arms = [{v.case.variant.removeprefix(kind): v for v in arm} for kind, arm in written]
    fair = [name for name in arms[0] if all(name in arm and arm[name].class_before is Class.OLD for arm in arms)]
    if not fair:
        return None
    key, *controls = (sum(answer_class(arm[name], side) is Class.OLD for name in fair) / len(fair) for arm in arms)
    return key - max(controls)
