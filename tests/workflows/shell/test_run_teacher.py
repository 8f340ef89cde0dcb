"""A run keeps its teacher, wherever it is gone on from."""

from dataclasses import replace

import pytest

from csat.errors import ConfigError
from csat.panel import Member, make_panel
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


def test_each_of_several_teachers_is_the_same_and_there(tmp_path):
    """Whatever order they are named in."""
    nuclei, tissue = Member(name="nuclei", spec=SPEC, shrink=2), Member(name="tissue", spec=replace(SPEC, name="timm"))
    other = Member(name="tissue", spec=replace(tissue.spec, weights_sha256="c" * 64))
    folder = RunFolder(str(tmp_path / "run"))
    check_same_teacher(folder, make_panel([nuclei, tissue]))
    folder.set_status("running")
    check_same_teacher(folder, make_panel([nuclei, tissue]))
    check_same_teacher(folder, make_panel([tissue, nuclei]))
    refused = {
        f"another teacher:\n  tissue, weights_sha256: was {'a' * 64}, is {'c' * 64}\n": [nuclei, other],
        "another teacher:\n  tissue: is not there\n": [nuclei],
        "another teacher:\n  third: was not there\n": [nuclei, tissue, replace(tissue, name="third")],
        "another teacher:\n  nuclei, shrink: was 2, is 1\n": [replace(nuclei, shrink=1), tissue],
    }
    for words, members in refused.items():
        with pytest.raises(ConfigError, match=words):
            check_same_teacher(folder, make_panel(members))
    with pytest.raises(ConfigError, match="the only teacher: was not there\n  tissue: is not there\n  nuclei: is not there"):
        check_same_teacher(folder, SPEC)
