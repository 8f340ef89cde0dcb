"""Several students in the settings of a pretraining: how they are said, and what of them cannot work together."""

import json

import pytest
import yaml

from csat.errors import ConfigError
from csat.methods.registry import METHODS
from csat.model.student import StudentConfig
from csat.settings import plain_settings, read_settings, with_places
from csat.tiles.grid import TilingConfig
from teachers.registry import TEACHERS
from tests.support import outsiders
from workflows import pretrain
from workflows.pretraining.check import check_methods, describe
from workflows.pretraining.config import NESTED, PretrainConfig, merge_students
from workflows.pretraining.job import build, make_job
from workflows.pretraining.students import of_student
from workflows.shell import command_line
from workflows.shell.config import MethodConfig, TeacherConfig

GIVEN = ("--run_folder=run", "--slides=demo", "--teacher=stain")
TINY = {"backbone": "csat_nano", "decoder_channels": 8}


def parse(*arguments):
    return command_line.parse(PretrainConfig, "", [*GIVEN, *arguments], nested=NESTED)


def config_of(students, **changes):
    settings = {"teacher": TeacherConfig(name="stain"), "data": TilingConfig(mpp=0.5, tile_px=64), **changes}
    return PretrainConfig(run_folder="run", slides=["x"], students=students, **settings)


def test_how_they_are_said(tmp_path):
    """By flags, in a recipe, and both; what is recorded is all of it, so that a rerun may say it otherwise."""
    expected = {
        "a": StudentConfig(),
        "b": StudentConfig(backbone="csat_nano", downsample=2),
        "c": StudentConfig(backbone="resnet18"),
    }
    by_flags = parse("--students.a=csat", "--students.b", "csat_nano", "--students.b.downsample=2", "--students.c=resnet18")
    assert by_flags.each_student() == expected and list(by_flags.each_student()) == ["a", "b", "c"]
    recipe = tmp_path / "recipe.yaml"
    said = {"a": "csat", "b": {"backbone": "csat_nano", "downsample": 4}, "c": "resnet18", "d": "csat"}
    recipe.write_text(yaml.safe_dump({"students": said}))
    changed = parse("--config", str(recipe), "--students.b.downsample=2", "--students.d=null")
    assert changed == by_flags
    recorded = plain_settings(by_flags)
    assert recorded["students"]["b"] == {**plain_settings(StudentConfig()), "backbone": "csat_nano", "downsample": 2}
    again = with_places(read_settings(PretrainConfig, json.loads(json.dumps(recorded)), what="the run"))
    assert again == by_flags
    assert parse("--students={}").each_student() == {None: StudentConfig()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--students.a=csat", "--student.backbone=resnet18"], r"student is for the only one and students \(a\) for several"),
        (["--students.a.b=1"], r"students.a: there is no setting 'b'"),
        (["--students.a.downsample=0"], "downsample is a whole factor of at least 1, not 0"),
        (["--students={a/b: csat}"], "'a/b' is no name for a student"),
    ],
)
def test_what_cannot_be_is_said(arguments, words):
    with pytest.raises(ConfigError, match=words):
        parse(*arguments)


def test_changes_keep_what_is_said():
    said = {"a": "csat", "b": {"backbone": "csat_nano"}}
    assert merge_students(said, {"b.downsample": 2, "c": "resnet18", "a": None}) == {
        "b": {"backbone": "csat_nano", "downsample": 2},
        "c": {"backbone": "resnet18"},
    }


def test_each_begins_as_it_would_alone():
    config = config_of({"first": "csat_nano", "second": TINY})
    teacher = describe(config)
    together = build(config, teacher, tile_px=64)
    (alone,) = build(config_of({}, student=StudentConfig(**TINY)), teacher, tile_px=64).values()
    assert list(together) == ["first", "second"]
    for name, tensor in alone.state_dict().items():
        assert tensor.equal(together["second"].state_dict()[name]), name


def test_who_is_refused_is_named():
    """A backbone that there is none of; settings of the only student are said as those of one of several."""
    config = config_of({"good": TINY, "odd": {"backbone": "resnet1"}})
    with pytest.raises(ConfigError, match=r"^students.odd: timm .* has no model 'resnet1'"):
        make_job(config, describe(config))
    with pytest.raises(ConfigError, match=r"^students.odd: lower students.odd.downsample, the student.s$"), of_student("odd"):
        raise ConfigError("lower student.downsample, the student's")
    with pytest.raises(ConfigError, match=r"^lower student.downsample$"), of_student(None):
        raise ConfigError("lower student.downsample")


def test_students_that_need_other_pixels_are_refused():
    students = {"half": {**TINY, "downsample": 2}, "quarter": {**TINY, "downsample": 4}}
    config = config_of(students, student_pixels="pyramid", method=MethodConfig(name="rckd"))
    with pytest.raises(ConfigError, match=r"theirs differ \(downsample of half: 2, quarter: 4\)"):
        make_job(config, describe(config))
    config = config_of({"half": {**TINY, "downsample": 2}}, student_pixels="pyramid")
    with pytest.raises(ConfigError, match="^students.half: student_pixels pyramid is for a student at lower resolution"):
        check_methods(config, make_job(config, describe(config))[1])


def test_a_method_with_a_first_stage_takes_one(monkeypatch):
    monkeypatch.setitem(METHODS, "told", f"{outsiders.__name__}:Told")
    method = MethodConfig(name="told", options={"epochs": 3})
    monkeypatch.setitem(TEACHERS, "tone", (outsiders.ToneOptions, outsiders.load_tone))
    config = config_of({"a": TINY, "b": TINY}, teacher=TeacherConfig(name="tone"), method=method)
    with pytest.raises(ConfigError, match="method told trains reader before a student, for it alone, and there are 2"):
        make_job(config, describe(config))


def test_the_verb_refuses_in_one_sentence(tmp_path, capsys):
    """The flags of the page are named; nothing has begun."""
    argv = [f"--run_folder={tmp_path / 'run'}", "--slides=demo", "--teacher=stain", "--data.mpp=0.5", "--students.a=resnet1"]
    assert pretrain.main(argv) == 2
    said = capsys.readouterr().err
    assert "error: students.a: timm" in said.replace("--students.a", "students.a") and said.count("\n") == 1
    assert not (tmp_path / "run" / "status.json").exists()
