"""Audits made by hand for the tests of reports: a realistic one, a hostile one, and ones with holes."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

from probes.estimate import Estimate, Ruling, decide, groups_needed
from probes.metrics import Row, summarise
from probes.verdict import Answer, Case, Class, Expect, Marks, Premise, Reply, Verdict
from reports.record import Audit, Change, Claim, FactRow, Figure, Judged

CAPITALS = [  # country, capital, target of the edit, currency, population
    ("France", "Paris", "Rome", "euro", 66_987_244),
    ("Japan", "Tokyo", "Lima", "yen", 126_529_100),
    ("Peru", "Lima", "Oslo", "sol", 31_989_256),
    ("Norway", "Oslo", "Cairo", "krone", 5_314_336),
    ("Egypt", "Cairo", "Madrid", "pound", 98_423_595),
    ("Spain", "Madrid", "Tokyo", "euro", 46_723_749),
    ("Iceland", "Reykjavík", "Paris", "króna", 353_574),
    ("Malta", "Valletta", "Vienna", "euro", 483_530),
]
ARMS = (("rome", "edit", "single"), ("rome", "edit", "stacked"), ("npo", "unlearn", "joint"))
WORDINGS = ("question", "polite", "typo", "distractor", "cloze")
EMPHASIS = ("plain", "key:capitals", "key:quotes", "key:reminder", "control:random_words:capitals",
            "control:random_words:quotes", "control:template_only:reminder")  # fmt: skip
STRATA = ("q1", "q2", "q3", "q4")
DEMANDS = {
    "edit": (("efficacy_generation", 0.9, None), ("generalization_generation", 0.5, None),
             ("specificity_generation", 0.8, None), ("recovery_rate", None, 0.2)),
    "unlearn": (("forget_accuracy", None, 0.1), ("retained", 0.8, None), ("leakage", None, 0.2), ("degeneration", None, 0.5)),
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    '</script><img src=x onerror="alert(2)">',
    "{{7*7}} {% raw %} ${7*7}",
    "| a | b |\n|---|---|\n`code` *bold* __it__ [link](http://evil.example/x) <!-- -->",
    "\x00\x07\x1b[31mred\x7f\x85",
    "\u202eevil\u202c \u2066x\u2069 \u200bzero\ufeff",
    "\ud800 lone \udfff",
    "x" * 20_000,
    "",
    "   ",
    "]]> --> ]] ' onmouseover='alert(3)",
    "</td></table></main><iframe src=//evil.example></iframe>",
    "Ā" + "\u0301" * 60,
    "# heading\n- item\n1. one\n```\nfence\n```",
    "url(http://evil.example/a.png) &lt;b&gt; &#60;i&#62;",
)


@cache
def realistic(seed: int = 0, *, facts: int = 8) -> Audit:
    """rome (single and stacked) and npo (joint) on `facts` facts, asked by all probes."""
    rng = random.Random(seed)
    rows = tuple(_fact(i) for i in range(facts))
    judged = tuple(
        Judged(*arm, verdict) for arm in ARMS for i in range(facts) for verdict in _verdicts(arm, rows[i], i, rng)
    )
    return assembled(rows, judged)


def assembled(facts: tuple[FactRow, ...], judged: tuple[Judged, ...]) -> Audit:
    """An audit of these verdicts, with figures and claims worked out from them."""
    arms = list(dict.fromkeys((item.operator, item.task, item.arm) for item in judged))
    figures = tuple(figure for arm in arms for figure in _figures(arm, judged))
    return Audit(
        spec={"model": "smollm2-135m", "operators": ["rome", "npo"], "n": 8, "seed": 0, "claims": {"edit": {}}},
        environment=ENVIRONMENT,
        model=MODEL,
        facts=facts,
        passed_over={"the model did not know it": 11, "no neighbour is known": 2},
        changes=tuple(change for arm in arms for change in _changes(arm, facts)),
        judged=judged,
        figures=figures,
        claims=tuple(_claim(figure) for figure in figures if _demand(figure)),
        command="editkit audit --operator rome --operator npo --n 8 --seed 0",
        started="2026-11-24T12:00:00Z",
        seconds=181.4,
        notes=("Two facts share a subject.",),
    )


@cache
def hostile() -> Audit:
    """Every text that a user or a model may choose is an attack on the page around it."""
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(8 * len(HOSTILE))]
    facts = tuple(
        dataclasses.replace(_fact(i), id=f"f{i}", subject=texts[i], object=texts[i + 1], prompt=texts[i + 2],
                            target_new=texts[i + 3], stratum=texts[i])
        for i in range(8)
    )  # fmt: skip
    judged = tuple(
        Judged(HOSTILE[k % 3], ("edit", "unlearn")[k % 2], HOSTILE[3 + k % 3], _attack(k, texts)) for k in range(60)
    )
    audit = assembled(facts, judged)
    evil = {HOSTILE[0]: HOSTILE[1], "nested": {HOSTILE[3]: list(HOSTILE)}, "popularity": HOSTILE[0]}
    return dataclasses.replace(
        audit, spec=evil, environment=evil | {"packages": evil}, model={"name": HOSTILE[1], "weights": HOSTILE[5]},
        command=HOSTILE[3], notes=HOSTILE, passed_over={HOSTILE[0]: 3}, started=HOSTILE[0],
    )  # fmt: skip


def empty() -> Audit:
    return Audit({}, {}, {}, (), {}, (), (), (), ())


def unmeasured() -> Audit:
    """Estimates without interval, without value and not finite, of a metric that nobody knows."""
    bare = Estimate(1.0, None, None, 0.95, 1, 1, "no interval: fewer than two groups")
    nothing = Estimate(None, None, None, 0.95, 0, 0, "no cases")
    broken = Estimate(float("nan"), None, None, 0.95, 4, 2, "undefined")
    rows = [Row("efficacy_generation", None, None, None, bare, None, None, 0),
            Row("never_heard_of", None, None, nothing, nothing, nothing, None, 3),
            Row("generalization_generation", None, "typo", nothing, broken, None, float("nan"), 0)]  # fmt: skip
    figures = tuple(Figure("rome", "edit", "single", row) for row in rows)
    claims = tuple(
        Claim("rome", "edit", "single", row.metric, row.after, Ruling.UNDECIDED, at_least=0.9, needed=35)
        for row in rows
    )
    return dataclasses.replace(empty(), figures=figures, claims=claims, model={"name": "m"})


def _fact(i: int) -> FactRow:
    country, capital, target, _, population = CAPITALS[i % len(CAPITALS)]
    name = f"capital/{country.lower()}" + (f"-{i}" if i >= len(CAPITALS) else "")
    prompt = f"The capital of {country} is"
    return FactRow(name, country, "capital", capital, prompt, target, population, STRATA[i % 4])


def _verdicts(arm: tuple[str, str, str], fact: FactRow, i: int, rng: random.Random) -> list[Verdict]:
    """What a change that half works looks like: worse stacked, worse in other words, worse by related questions."""
    strength = {"single": 0.97, "stacked": 0.7, "joint": 0.85}[arm[2]]
    edit = arm[1] == "edit"
    cases = [_case(fact, "rewrite", "direct", fact.prompt, edit)]
    cases += [
        _case(fact, "rephrase", w, f"{w.capitalize()}: which city is the capital of {fact.subject}?", edit)
        for w in WORDINGS
    ]
    verdicts = [_moved(case, edit, rng, strength - 0.1 * (case.probe == "rephrase") * (1 + i % 4)) for case in cases]
    stressed = [
        _case(
            fact,
            "keyword_emphasis",
            w,
            fact.prompt if w == "plain" else f"{w}: CAPITAL. {fact.prompt}",
            edit,
            Expect.MOVES,
        )
        for w in EMPHASIS
    ]
    verdicts += [_moved(case, edit, rng, 0.95 - 0.3 * case.variant.startswith("key:")) for case in stressed]
    hops = [
        _case(fact, "multi_hop", w, f"The money used in the land of {fact.object} is", edit)
        for w in ("two_hops", "inverse")
    ]
    known, unknown = (_premise(fact, said) for said in (Class.OLD, Class.HALLUCINATION))
    verdicts += [dataclasses.replace(_moved(case, edit, rng, 0.35), premises=(known,)) for case in hops[: 1 + i % 2]]
    verdicts += [
        dataclasses.replace(
            _moved(hops[-1], edit, rng, 0.5),
            applies=False,
            note="the model does not know the currency of Italy",
            premises=(known, unknown),
        )
    ]
    verdicts += [_stayed(fact, j, probe, rng, strength) for probe in ("neighborhood", "popularity") for j in range(4)]
    return verdicts  # fmt: skip


def _case(fact: FactRow, probe: str, variant: str, prompt: str, edit: bool, expect: Expect = Expect.HOLDS) -> Case:
    new = (fact.target_new or "",) if edit else ()
    return Case(probe, variant, prompt, expect, fact.id, (fact.object,), new, ("Berlin",), (), "capital", fact.stratum)


def _premise(fact: FactRow, said: Class) -> Premise:
    prompt = f"The {'capital' if said is Class.OLD else 'money'} of {fact.subject} is"
    case = Case("multi_hop", "premise", prompt, Expect.UNCHANGED, fact.id, (fact.object,), base_only=True)
    return Premise(case, Reply(f" {fact.object if said is Class.OLD else 'a mystery'}."), said)


def _moved(case: Case, edit: bool, rng: random.Random, strength: float) -> Verdict:
    """The verdict on a case that should show the change, which it does with probability `strength`."""
    works = rng.random() < strength
    failing = (Class.OLD, Class.OLD, Class.HALLUCINATION, Class.DEGENERATE)
    kind = rng.choice(failing if edit or not works else (Class.HALLUCINATION, Class.REFUSAL, Class.OTHER))
    kind = Class.NEW if edit and works else (Class.OLD if not edit and not works else kind)
    said = {
        Class.NEW: f" {(case.new or ('?',))[0]}, and its people are proud of it.",
        Class.OLD: f" {case.old[0]}. The city lies on a river.",
        Class.HALLUCINATION: " Berlin, the largest city of the country.",
        Class.REFUSAL: " I do not know which city that is.",
        Class.DEGENERATE: " the the the the the the the the",
        Class.OTHER: " a question that many people ask.",
    }
    after = Marks(works, works, works if kind is not Class.DEGENERATE else False)
    lead = rng.uniform(0.2, 4.0) * (1 if works else -1)
    before = Reply(said[Class.OLD], {case.old[0]: -0.4}, {case.old[0]: True})
    answer = Answer(before, Reply(said[kind], {case.old[0]: -2.5}, {case.old[0]: False}))
    return Verdict(case, answer, Marks(False, False, False), after, Class.OLD, kind, -2.1, lead)


def _stayed(fact: FactRow, j: int, probe: str, rng: random.Random, strength: float) -> Verdict:
    country, capital, *_ = CAPITALS[(j + 3) % len(CAPITALS)]
    case = Case(probe, "direct", f"The capital of {country} is", Expect.UNCHANGED, fact.id, (capital,), (), ("Berlin",),
                (), "capital", STRATA[j])  # fmt: skip
    knew, keeps = rng.random() < 0.8, rng.random() < strength
    wrong = f" {fact.target_new}, a city by the sea."
    before = Reply(f" {capital}." if knew else " Berlin.")
    after = Reply(f" {capital}." if knew and keeps else wrong)
    marks = Marks(knew, knew, knew), Marks(keeps, knew and keeps, knew and keeps)
    kinds = Class.OLD if knew else Class.HALLUCINATION, Class.OLD if knew and keeps else Class.HALLUCINATION
    return Verdict(case, Answer(before, after), *marks, *kinds, 1.4, 1.1 if keeps else -0.7)


def _attack(k: int, texts: list[str]) -> Verdict:
    prompt, before, after = (texts[k + i] for i in range(3))
    probe = ("rewrite", "rephrase", "neighborhood", "keyword_emphasis", "multi_hop", HOSTILE[0])[k % 6]
    expect = Expect.UNCHANGED if probe == "neighborhood" else Expect.HOLDS
    case = Case(probe, HOSTILE[k % 7], prompt if prompt.strip() else "?", expect, f"f{k % 8}", (texts[k + 4],),
                stratum=HOSTILE[k % 4])  # fmt: skip
    marks = Marks(True, True, True), Marks(False, False, k % 3 == 0)
    return Verdict(case, Answer(Reply(before), Reply(after)), *marks, Class.OLD, list(Class)[k % 6], None, float("inf"),
                   applies=k % 5 != 0, note=texts[k])  # fmt: skip


def _figures(arm: tuple[str, str, str], judged: tuple[Judged, ...]) -> list[Figure]:
    own = [item.verdict for item in judged if (item.operator, item.task, item.arm) == arm]
    finite = [v if v.margin_after != float("inf") else dataclasses.replace(v, margin_after=None) for v in own]
    return [Figure(*arm, row) for row in summarise(finite, task=arm[1])]  # type: ignore[arg-type]


def _demand(figure: Figure) -> tuple[float | None, float | None] | None:
    if figure.row.stratum is not None or figure.row.variant is not None:
        return None
    return next((bars for name, *bars in DEMANDS[figure.task] if name == figure.row.metric), None)


def _claim(figure: Figure) -> Claim:
    at_least, at_most = _demand(figure) or (None, None)
    ruling = decide(figure.row.after, at_least, at_most)
    needed = groups_needed(at_least if at_least is not None else 1 - (at_most or 0.0))
    row = figure.row
    return Claim(figure.operator, figure.task, figure.arm, row.metric, row.after, ruling, at_least, at_most,
                 needed if ruling is Ruling.UNDECIDED else None)  # fmt: skip


def _changes(arm: tuple[str, str, str], facts: tuple[FactRow, ...]) -> list[Change]:
    groups = [(fact.id,) for fact in facts] if arm[2] == "single" else [tuple(fact.id for fact in facts)]
    settings = {"layer": 8, "steps": 25} if arm[0] == "rome" else {"beta": 0.1, "learning_rate": 1e-5}
    return [
        Change(f"{arm[0]}-{arm[2]}-{i}", *arm, ids, settings, f"preset {arm[0]}.toml, [llama]", i, f"{i:02x}" * 32,
               f"patches/{arm[0]}-{i}.safetensors", 3.2 + i, ("model.layers.8.mlp.down_proj.weight",), 0.0123)
        for i, ids in enumerate(groups)
    ]  # fmt: skip


ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64",
    "cpu": "2 cores",
    "threads": 2,
    "packages": {"torch": "2.13.0", "transformers": "5.24.0"},
    "editkit": "0.1.0",
    "code": "ab" * 32,
    "device": "cpu",
    "dtype": "float32",
    "popularity": "population in people (GeoNames)",
}
MODEL = {
    "name": "SmolLM2-135M-Instruct",
    "layout": "llama",
    "model_type": "llama",
    "parameters": 134_515_008,
    "layers": 30,
    "hidden_size": 576,
    "weights": "cd" * 32,
    "licence": "Apache-2.0",
}
