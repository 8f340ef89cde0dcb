"""A run keeps its teacher, wherever it is gone on from."""

from dataclasses import replace

import pytest

from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec, TeacherSpec
from csat.runs.folder import RunFolder
from workflows.shell.run_teacher import check_same_teacher

SPEC = TeacherSpec(name="run", responses=(), mpp=0.5, weights_sha256="a" * 64)


def test_a_class_may_be_spelt_in_another_way(tmp_path):
    """As version 0.1 spelt those of the published HoVer-Nets; another class is another teacher."""

    def teacher(*names):
        tp = ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=2, channel_names=names)
        return replace(SPEC, responses=(tp,))

    folder = RunFolder(str(tmp_path / "run"))
    check_same_teacher(folder, teacher("background", "non-neoplastic epithelial"))
    folder.set_status("running")
    check_same_teacher(folder, teacher("background", "epithelial"))
    assert folder.read_json("teacher.json")["responses"][0]["channel_names"] == ["background", "epithelial"]
    with pytest.raises(ConfigError, match="another teacher:\n  responses: was .*epithelial.*is .*dead"):
        check_same_teacher(folder, teacher("background", "dead"))


def test_another_teacher_is_refused_once_there_is_work_to_lose(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    check_same_teacher(folder, SPEC)
    other = replace(SPEC, weights_sha256="b" * 64)
    check_same_teacher(folder, other)  # nothing has begun: the settings may be corrected
    folder.set_status("running")
    check_same_teacher(folder, other)
    with pytest.raises(ConfigError, match=f"another teacher:\n  weights_sha256: was {'b' * 64}, is {'a' * 64}\n"):
        check_same_teacher(folder, SPEC)
