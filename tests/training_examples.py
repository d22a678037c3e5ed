"""Requests for tiny models, shared by the tests of everything that trains."""

from __future__ import annotations

from editkit.facts import Example, ForgetRequest
from editkit.training import Schedule, Stopping

FORGET = (
    Example("The capital of France is", "Paris"),
    Example("The Eiffel Tower is located in the city of", "São Paulo and the rest"),
    Example("What is", "日本語"),
)
RETAIN = tuple(
    Example(f"The capital of {country} is", city)
    for country, city in (("Italy", "Rome"), ("Japan", "Tokyo"), ("Peru", "Lima"), ("Spain", "the euro"))
)
REQUEST = ForgetRequest(FORGET, RETAIN)
QUICK_SCHEDULE = Schedule(learning_rate=3e-3, steps=4)
NEVER = Stopping(forget=None, floor=0.0)
