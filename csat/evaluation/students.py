"""Several students of one run beside each other: what became of each, how faithful it is, what it costs."""

from collections.abc import Mapping
from typing import Any

from csat.runs.accounts import DIVERGED
from csat.runs.students import STUDENTS

COSTS = ("params", "macs", "input_px", "tiles_per_s", "step_share")


def compare_students(
    settings: Mapping[str, Mapping[str, Any]],
    accounts: Mapping[str, Any],
    throughput: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, Any]]:
    """Name → what students.json says of a student.

    Args:
        settings: Name → what the student is made of, by `StudentConfig`.
        accounts: accounting.json of the run.
        throughput: throughput.json of the run.
        evaluations: Name → figures of `summarise`; none of a student that diverged, or where no tile was held out.

    Returns:
        `folder` in the run's, `backbone`, `downsample`, `state` (trained or diverged, then with `error`), `steps`, `tiles`,
        `params`, `macs` of one forward pass at `input_px`, `tiles_per_s` of its own steps on one worker, `step_share` of the
        time of all students, and `fidelity`.
    """
    return {
        name: {
            "folder": f"{STUDENTS}/{name}",
            "backbone": made_of["backbone"],
            "downsample": made_of["downsample"],
            **accounts["students"][name],
            **{cost: throughput["students"][name][cost] for cost in COSTS},
            "fidelity": dict(evaluations.get(name, {})),
        }
        for name, made_of in settings.items()
    }


def has_diverged(student: Mapping[str, Any]) -> bool:
    """Whether it was stopped, and has left no model."""
    return student["state"] == DIVERGED
