"""The teacher of a run, for every verb that has one: the same to the end."""

from collections.abc import Mapping
from typing import Any

from csat import nuclei
from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from teachers.contract import teacher_record

ONLY = "the only teacher"


def check_same_teacher(folder: RunFolder, spec: TeacherSpec) -> None:
    """A run resumes with the teacher that it began with; teacher.json says which. Its classes may be spelt in another way.

    Raises:
        ConfigError: it was another one; lists the difference.
    """
    now, earlier = teacher_record(spec), folder.read_json("teacher.json")
    begun = earlier if earlier is not None and folder.has_begun() else now
    if differences := _differences(begun, now):
        raise ConfigError(
            f"{folder.uri} was started with another teacher:\n  "
            + "\n  ".join(differences)
            + "\nGive the earlier weights back, or choose another run_folder"
        )
    folder.write_json("teacher.json", now)


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, a line each; of several teachers each by its name."""
    was, members = _members(earlier), _members(now)
    lines = [f"{name or ONLY}: was not there" for name in members if name not in was]
    lines += [f"{name or ONLY}: is not there" for name in was if name not in members]
    for name, record in members.items():
        if name in was:
            before, after = _in_one_spelling(was[name]), _in_one_spelling(record)
            whose = f"{name}, " if name else ""
            lines += [
                f"{whose}{key}: was {was[name].get(key)}, is {record.get(key)}"
                for key in record
                if before.get(key) != after[key]
            ]
    return lines


def _members(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → record of each of several teachers; of the only one under ""."""
    several = record.get("members")
    return {each["name"]: {**each["spec"], "shrink": each["shrink"]} for each in several} if several else {"": dict(record)}


def _in_one_spelling(record: Mapping[str, Any]) -> dict[str, Any]:
    responses = [dict(each, channel_names=list(nuclei.one_spelling(each["channel_names"]))) for each in record["responses"]]
    return {**record, "responses": responses}
