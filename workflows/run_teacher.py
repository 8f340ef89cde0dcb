"""The teacher of a run, for every verb that has one: the same to the end."""

from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.training.run_folder import RunFolder
from teachers.contract import teacher_manifest


def check_same_teacher(folder: RunFolder, spec: TeacherSpec) -> None:
    """A run goes on with the teacher that it began with; teacher.json says which.

    Raises:
        ConfigError: it was another one; lists the difference.
    """
    now, earlier = teacher_manifest(spec), folder.read_json("teacher.json")
    if earlier is not None and earlier != now and folder.has_begun():
        differences = [f"{key}: was {earlier.get(key)}, is {now.get(key)}" for key in now if earlier.get(key) != now.get(key)]
        raise ConfigError(
            f"{folder.uri} was begun with another teacher:\n  "
            + "\n  ".join(differences)
            + "\nGive the earlier weights back, or choose another --run_folder"
        )
    folder.write_json("teacher.json", now)
