"""students.html of a run with several students: fidelity against what each costs, and the same tiles as each sees them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from csat.evaluation.reports.page import render
from csat.evaluation.reports.plots import Costs, pareto
from csat.evaluation.reports.pretraining import picture_row
from csat.runs.folder import RunFolder

PAGE = "students.html"
FAITHFUL = "student_vs_teacher."  # how figures of a student against its teacher begin
OF_STUDENT = "student_vs_"  # how figures of a student against its teacher, or what is known, begin
COSTS: Costs = (
    ("params", 1e6, "M parameters (less is better)", False),
    ("macs", 1e9, "GMAC a tile (less is better)", False),
    ("tiles_per_s", 1.0, "tiles/s in training (more is better)", True),
)


def write_students_report(
    folder: RunFolder,
    students: Mapping[str, Mapping[str, Any]],
    *,
    pictures: Mapping[str, list[dict[str, np.ndarray]]],
) -> None:
    """Write `students.html`.

    Args:
        folder: The run's.
        students: See `compare_students`.
        pictures: Student → held-out tiles, see `write_pretraining_report`; the same tiles of all, in the same order.
    """
    panels = _panels(pictures)
    page = render(
        PAGE,
        run_folder=folder.uri,
        teacher=folder.read_json("teacher.json"),
        students=students,
        figures=figures_of(students),
        paretos=_paretos(students),
        panels=[title for _, title, _ in panels],
        pictures=[picture_row(picture, panels) for picture in _side_by_side(pictures)],
    )
    folder.write_text(PAGE, page)


def figures_of(students: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the figures of fidelity that some student has."""
    return list(dict.fromkeys(name for student in students.values() for name in student["fidelity"]))


def _paretos(students: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Figure of fidelity → picture; of the students that have it."""
    found = {}
    for figure in figures_of(students):
        if figure.startswith(OF_STUDENT):
            measured = {name: each["fidelity"][figure] for name, each in students.items() if figure in each["fidelity"]}
            found[figure] = pareto(
                measured, students, metric=figure.removeprefix(FAITHFUL).removeprefix(OF_STUDENT), panels=COSTS
            )
    return {figure: picture for figure, picture in found.items() if picture}


def _panels(pictures: Mapping[str, list[dict[str, np.ndarray]]]) -> list[tuple[str, str, int | None]]:
    """The tile, then the first map of the teacher and of each student: key, title, channel (None: the most likely one)."""
    first = next((shown[0] for shown in pictures.values() if shown), None)
    maps = [key.removeprefix("teacher.") for key in first or () if key.startswith("teacher.")]
    if not maps:
        return []
    name, channels = maps[0], first[f"teacher.{maps[0]}"].shape[0]
    channel = 0 if channels <= 2 else None
    answers = [(f"{who}.{name}", f"{who}: {name}", channel) for who in ("teacher", *pictures)]
    return [("tile", "tile", 0), *answers]


def _side_by_side(pictures: Mapping[str, list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """The pictures of all students as those of one, each answer under its student's name."""
    found = []
    for shown in zip(*pictures.values(), strict=True):
        tile = {key: value for key, value in shown[0].items() if not key.startswith("student.")}
        for name, picture in zip(pictures, shown, strict=True):
            own = {key.removeprefix("student"): value for key, value in picture.items() if key.startswith("student.")}
            tile |= {f"{name}{key}": value for key, value in own.items()}
        found.append(tile)
    return found
