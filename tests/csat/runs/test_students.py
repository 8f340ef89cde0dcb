import pytest

from csat.errors import ConfigError
from csat.runs.students import check_names, folder_of, manifest_of, run_of


@pytest.mark.parametrize("run", ["/data/run", "s3://bucket/run"])
def test_where_a_student_has_its_folder(run):
    assert folder_of(run, None) == run
    assert folder_of(run, "nano") == f"{run}/students/nano"
    assert run_of(folder_of(run, "nano")) == run == run_of(run)


def test_the_manifest_is_the_runs(tmp_path):
    run = str(tmp_path / "run")
    assert manifest_of(run) == f"{run}/manifest"
    assert manifest_of(folder_of(run, "nano")) == f"{run}/manifest"
    own = tmp_path / "students" / "nano" / "manifest"  # a run that somebody keeps in a folder of that name
    own.mkdir(parents=True)
    (own / "index.json").write_text("{}")
    assert manifest_of(str(own.parent)) == str(own)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "-a", "<b>", "a" * 65])
def test_what_is_no_name_is_refused(name):
    check_names(["a", "csat_nano", "resnet-18", "2"])
    with pytest.raises(ConfigError, match="is no name for a student"):
        check_names(["a", name])
