"""Records and stub models for tests of probes: no data set, no model."""

from __future__ import annotations

from collections.abc import Callable

from editkit.attribute import WordScore, words_of
from editkit.facts import Edit, EditRecord, Example, Fact, ForgetRecord, HeldOut, Hop, Question, Record
from probes.kinds import PROBES, Context
from probes.verdict import Answer, Case, Reply, Verdict

FACT = Fact("France", "capital", "Paris", "The capital of {} is")
RANGE = ("Paris", "Rome", "Oslo", "Lima", "Tokyo", "Cairo", "Madrid")


def asked(subject: str, answer: str, stratum: str | None = "q2", relation: str = "capital") -> Question:
    prompt = "The capital of {} is" if relation == "capital" else "The currency of {} is the"
    return Question(prompt.format(subject), answer, subject, relation, popularity=5.0, stratum=stratum)


NEIGHBORS = (
    asked("Norway", "Oslo", "q1"),
    asked("Peru", "Lima", "q2"),
    asked("Japan", "Tokyo", "q4"),
    asked("Spain", "Madrid", None),
    asked("Poland", "zloty", "q3", "currency"),
    Question("What is the currency of Sweden?", "krona", "Sweden", "currency"),
)
LYON = Question("The city of Lyon is in the country of", "France", "Lyon", "city_country", popularity=1.0, stratum="q3")
OWN = Question("The capital of France is", "Paris", "France", "capital")
CONTINENT = {
    name: Question(f"The country with the capital {name} has the language", language, name, "language")
    for name, language in (("Paris", "French"), ("Rome", "Italian"))
}
ENDING = Question("The capital of the country of Lyon is", "Paris", "Lyon", "capital")
BEGINNING = Question("In the capital of France, what language is spoken?", "French", "France", "language")
INVERSE = Question("The country whose capital is Paris is", "France", "Paris", "capital_of")
PARAPHRASES = ("The capital city of {} is called", "In {}, the seat of government is")
QUESTIONS = ("What is the capital of {}?", "Which city governs {}?")


def held_out(**changes: object) -> HeldOut:
    fields: dict[str, object] = {
        "paraphrases": PARAPHRASES,
        "questions": QUESTIONS,
        "neighborhood": NEIGHBORS,
        "range": RANGE,
        "aliases": ("Paname",),
        "aliases_new": (),
        "popularity": 60e6,
        "stratum": "q4",
    }
    return HeldOut(**(fields | changes))  # type: ignore[arg-type]


def edit_record(**changes: object) -> EditRecord:
    hops = (
        Hop(ENDING, (LYON, OWN), "composition", "Rome"),
        Hop(BEGINNING, (OWN, *CONTINENT.values()), "composition", "Italian"),
    )
    return EditRecord("capital/fr", Edit(FACT, "Rome"), held_out(**{"hops": hops, "aliases_new": ("Roma",)} | changes))


def forget_record(**changes: object) -> ForgetRecord:
    hops = (Hop(ENDING, (LYON, OWN), "composition"), Hop(INVERSE, (INVERSE, OWN), "inverse"))
    return ForgetRecord("capital/fr", FACT, (Example(FACT.text, "Paris"),), held_out(**{"hops": hops} | changes))


def bare(record: Record) -> Record:
    """The same as a user's fact that brings nothing but itself."""
    if isinstance(record, EditRecord):
        return EditRecord(record.id, record.edit)
    return ForgetRecord(record.id, record.fact, record.examples)


RECORDS: dict[str, Record] = {
    "edit": edit_record(),
    "forget": forget_record(),
    "bare edit": bare(edit_record()),
    "bare forget": bare(forget_record()),
    "question prompt": EditRecord("q", Edit(Fact("France", "capital", "Paris", "What is the capital of {}?"), "Rome")),
}

Model = Callable[[Case], Reply]


def says(wanted: Callable[[Case], str], margin: float = 3.0) -> Model:
    """A model that says what `wanted` gives for a case and finds it likeliest, and the old answer least likely else."""

    def reply(case: Case) -> Reply:
        text = wanted(case)
        likely = {each: -1.0 - (each != text) * (margin + (each == case.old[0])) for each in case.targets}
        return Reply(text, likely, {target: target == text for target in case.targets})

    return reply


old_answer = says(lambda case: case.old[0])
new_answer = says(lambda case: case.new[0] if case.new else "a place that nobody knows")


def subject_and_relation(prompt: str, answer: str) -> tuple[WordScore, ...]:
    """An attribution that finds the long words important, as occlusion would."""
    return tuple(WordScore(word, 1.0 if len(word.text) > 3 else -0.1) for word in words_of(prompt))


def context(seed: int = 0) -> Context:
    return Context(seed, subject_and_relation)


def run(name: str, record: Record, before: Model, after: Model, *, seed: int = 0) -> tuple[list[Case], list[Verdict]]:
    """Every case that a probe asked, premises too, and its verdicts."""
    rounds = PROBES[name](record, context(seed))
    asked_cases: list[Case] = []
    answers: list[Answer] | None = None
    while True:
        try:
            cases = next(rounds) if answers is None else rounds.send(answers)
        except StopIteration as done:
            return asked_cases, done.value
        asked_cases += cases
        answers = [Answer(before(case), before(case) if case.base_only else after(case)) for case in cases]
