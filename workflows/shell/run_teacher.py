"""The teacher of a run, for every verb that has one: the same to the end."""

from collections.abc import Mapping
from typing import Any

from csat import nuclei
from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from teachers.contract import teacher_record


def check_same_teacher(folder: RunFolder, spec: TeacherSpec) -> None:
    """A run resumes with the teacher that it began with; teacher.json says which. Its classes may be spelt in another way.

    Raises:
        ConfigError: it was another one; lists the difference.
    """
    now, earlier = teacher_record(spec), folder.read_json("teacher.json")
    if earlier is not None and folder.has_begun():
        was, is_now = _in_one_spelling(earlier), _in_one_spelling(now)
        differences = [f"{key}: was {earlier.get(key)}, is {now.get(key)}" for key in now if was.get(key) != is_now[key]]
        if differences:
            raise ConfigError(
                f"{folder.uri} was started with another teacher:\n  "
                + "\n  ".join(differences)
                + "\nGive the earlier weights back, or choose another run_folder"
            )
    folder.write_json("teacher.json", now)


def _in_one_spelling(record: Mapping[str, Any]) -> dict[str, Any]:
    responses = [dict(each, channel_names=list(nuclei.one_spelling(each["channel_names"]))) for each in record["responses"]]
    return {**record, "responses": responses}
