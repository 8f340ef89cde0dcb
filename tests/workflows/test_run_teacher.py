"""A run keeps its teacher, wherever it is gone on from."""

from dataclasses import dataclass, replace

import pytest

from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.training.run_folder import RunFolder
from workflows.config import TeacherConfig
from workflows.run_teacher import check_same_teacher, with_teacher_found


@dataclass(frozen=True)
class VerbConfig:
    teacher: TeacherConfig | None


SPEC = TeacherSpec(name="run", responses=(), mpp=0.5, weights_sha256="a" * 64)


def test_a_folder_becomes_the_teacher_that_it_means_in_the_record_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fanet").mkdir(parents=True)
    config = VerbConfig(TeacherConfig(name="runs/fanet"))
    found, plain = with_teacher_found(config, {"run_folder": "x", "teacher": {"name": "runs/fanet", "weights": None}})
    assert (found.teacher.name, found.teacher.weights) == ("run", str(tmp_path / "runs" / "fanet"))
    assert plain == {"run_folder": "x", "teacher": {"name": "run", "weights": found.teacher.weights}}
    without = replace(config, teacher=None)
    assert with_teacher_found(without, {"teacher": None}) == (without, {"teacher": None})


def test_another_teacher_is_refused_once_there_is_work_to_lose(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    check_same_teacher(folder, SPEC)
    other = replace(SPEC, weights_sha256="b" * 64)
    check_same_teacher(folder, other)  # nothing has begun: the settings may be corrected
    folder.set_status("running")
    check_same_teacher(folder, other)
    with pytest.raises(ConfigError, match=f"another teacher:\n  weights_sha256: was {'b' * 64}, is {'a' * 64}\n"):
        check_same_teacher(folder, SPEC)
