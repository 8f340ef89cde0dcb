"""What several students leave behind, each in its own folder, and the page that lays them beside each other."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from csat.errors import NonFiniteLossError
from csat.evaluation.reports.pretraining import write_pretraining_report
from csat.evaluation.reports.students import write_students_report
from csat.evaluation.students import compare_students
from csat.model.student import StudentConfig
from csat.runs.accounts import diverged_in, write_own_throughput
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.runs.students import folder_of

# Student → its figures on held-out tiles, and pictures of some; of the only one by None.
Answers = dict[str | None, tuple[dict[str, Any], list[dict[str, np.ndarray]]]]


def finish_students(
    folder: RunFolder,
    students: Mapping[str, StudentConfig],
    accounts: dict[str, Any],
    throughput: dict[str, Any],
    answers: Answers,
) -> None:
    """Each student's throughput.json, report.html and status.json, students.json and students.html, and the run's report.html.

    Args:
        accounts, throughput: As accounting.json and throughput.json of the run.
        answers: Without students that diverged.
    """
    diverged = diverged_in(accounts)
    shared = {key: value for key, value in accounts.items() if key != "students"}
    for name in students:
        own = RunFolder(folder_of(folder.uri, name))
        own.write_json("accounting.json", shared)
        own_throughput = write_own_throughput(own, name, throughput)
        if name in diverged:
            own.set_status("failed", error=diverged[name], kind=NonFiniteLossError.__name__)
            continue
        evaluation, pictures = answers.get(name, ({}, []))
        write_pretraining_report(
            own,
            metrics=read_metrics(own.uri),
            accounts=shared,
            throughput=own_throughput,
            evaluation=evaluation,
            pictures=pictures,
            student=name,
        )
        own.set_status("finished")
    evaluations = {name: evaluation for name, (evaluation, _) in answers.items()}
    settings = {name: asdict(student) for name, student in students.items()}
    compared = compare_students(settings, accounts, throughput, evaluations)
    folder.write_json("students.json", compared)
    write_students_report(folder, compared, pictures={name: pictures for name, (_, pictures) in answers.items()})
    write_pretraining_report(
        folder,
        metrics=read_metrics(folder.uri),
        accounts=accounts,
        throughput=throughput,
        evaluation={},
        pictures=[],
        students=compared,
    )
