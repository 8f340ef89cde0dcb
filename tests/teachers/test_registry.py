import ast
import hashlib
import importlib
import json
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from csat.errors import ConfigError, TeacherError
from teachers import registry
from teachers.contract import sha256_of, sha256_of_settings, teacher_record, weights_file
from teachers.registry import TEACHERS, build_options, describe_teacher, load_teacher
from tests.support.fakes import FakeOptions, FakeTeacher


@pytest.fixture
def with_fake(monkeypatch):
    monkeypatch.setitem(registry.TEACHERS, "fake", ("tests.support.fakes:FakeOptions", "tests.support.fakes:load"))


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_every_entry_resolves_to_documented_options_and_a_loader(name):
    options, loader = (
        getattr(importlib.import_module(reference.partition(":")[0]), reference.partition(":")[2])
        for reference in TEACHERS[name]
    )
    assert is_dataclass(options) and options.__dataclass_params__.frozen and options.__doc__
    assert callable(loader)


def test_the_registry_imports_no_teacher():
    tree = ast.parse(Path(registry.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in imported if module.startswith("teachers")} == {"teachers.contract"}


def test_a_fifth_teacher_is_one_line(with_fake):
    teacher = load_teacher("fake", options={"crop_px": 2}, wanted=["hv", "np"])
    assert isinstance(teacher, FakeTeacher) and teacher.options == FakeOptions(crop_px=2)
    assert [spec.name for spec in teacher.spec.responses] == ["np", "hv"]  # in the teacher's order
    assert [spec.name for spec in describe_teacher("fake").responses] == ["np", "hv", "features"]


def test_an_unknown_teacher_lists_the_known():
    with pytest.raises(ConfigError, match="no teacher 'unet'; there are: stain, hovernet, timm, ara_cnn, torchscript"):
        load_teacher("unet")


def test_an_unknown_option_lists_the_valid():
    with pytest.raises(ConfigError, match="no setting 'sharpness'.*Settings are: mpp, smoothing_um"):
        build_options("stain", {"sharpness": 1})


def test_options_are_converted_and_checked_by_type():
    assert build_options("stain", {"mpp": 1}).mpp == 1.0
    with pytest.raises(ConfigError, match="'stain'.*mpp"):
        build_options("stain", {"mpp": "fine"})
    with pytest.raises(ConfigError, match="mpp must be above 0"):
        build_options("stain", {"mpp": 0})


def test_a_wanted_response_that_is_not_there_lists_what_is():
    with pytest.raises(TeacherError, match="'stain' was asked for tp; it has: np, hv"):
        load_teacher("stain", wanted=["np", "tp"])
    with pytest.raises(TeacherError, match="none of its responses"):
        load_teacher("stain", wanted=[])


def test_sha256_of_is_the_files_hash(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_settings_and_version_make_a_weight_free_teachers_hash():
    base = sha256_of_settings(FakeOptions(), version=1)
    assert base == sha256_of_settings(FakeOptions(), version=1) and len(base) == 64
    assert len({base, sha256_of_settings(FakeOptions(seed=1), version=1), sha256_of_settings(FakeOptions(), version=2)}) == 3


def test_the_record_is_json_and_names_what_a_run_must_record():
    record = teacher_record(load_teacher("stain", options={"mpp": 0.25}).spec)
    assert json.loads(json.dumps(record)) == record
    assert record["name"] == "stain" and record["mpp"] == 0.25 and record["licence"] == "Apache-2.0"
    assert len(record["weights_sha256"]) == 64
    assert [response["name"] for response in record["responses"]] == ["np", "hv"]
    assert record["responses"][1]["symmetry"] == "hv"


def test_missing_weights_say_what_was_expected_and_what_is_there(tmp_path):
    (tmp_path / "hovernet.tar").touch()
    with (
        pytest.raises(TeacherError, match=r"no weights file .*wrong\.tar \(.* holds: hovernet\.tar\)\. Expected a checkpoint"),
        weights_file(str(tmp_path / "wrong.tar"), teacher="x", expected="a checkpoint"),
    ):
        pass
    with (
        pytest.raises(TeacherError, match="a folder, holding: hovernet.tar"),
        weights_file(str(tmp_path), teacher="x", expected="y"),
    ):
        pass
    with pytest.raises(TeacherError, match="does not exist"), weights_file("/no/such/w.pt", teacher="x", expected="y"):
        pass
    with pytest.raises(TeacherError, match="Set teacher.weights"), weights_file(None, teacher="x", expected="y"):
        pass
    with pytest.raises(TeacherError, match="ftp://"), weights_file("ftp://host/w.pt", teacher="x", expected="y"):
        pass


def test_local_weights_are_opened_in_place(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"w")
    for uri in (str(path), f"file://{path}"):
        with weights_file(uri, teacher="x", expected="y") as found:
            assert found == path
