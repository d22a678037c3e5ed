"""Verdicts to estimates: one decorated function a metric, its function name the registered name.

The files of this folder are read on the first look-up in `METRICS`.
"""

from probes.metrics._metric import METRICS, UNITS, Metric, Side, Task, combined, per_case, per_group, readings
from probes.metrics._summary import Row, summarise, value

__all__ = [
    "METRICS",
    "UNITS",
    "Metric",
    "Row",
    "Side",
    "Task",
    "combined",
    "per_case",
    "per_group",
    "readings",
    "summarise",
    "value",
]
