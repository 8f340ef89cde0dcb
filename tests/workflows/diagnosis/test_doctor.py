"""A diagnosis as a user has it: of a run that would work, and of one with several faults at once."""

import json

import pytest

from tests.support.verbs import arguments
from workflows import doctor


def told(capsys, argv):
    code = doctor.main(argv)
    said = json.loads(capsys.readouterr().out)
    return code, {each["check"]: each for each in said["checks"]}, said


@pytest.mark.ray
def test_a_run_that_would_work_is_planned_and_nothing_is_left(ray_cluster, slides, tmp_path, capsys):
    code, checks, said = told(capsys, arguments(slides, tmp_path / "run", format="json", sample_slides=2))
    assert code == 0 and said["ok"], checks
    assert {each["state"] for each in checks.values()} == {"PASS"}
    assert "2 of 2 opened" in checks["slides"]["found"]
    plan = said["plan"]
    assert plan["plan"]["tiles_per_s"] <= min(plan["plan"]["stages"].values())
    assert plan["plan"]["cpus"] <= 4 and plan["takes"]["hours"] > 0
    assert plan["with"]["one more node"]["times"] >= 0.99
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_every_fault_is_said_with_what_mends_it(ray_cluster, slides, tmp_path, capsys):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    faults = {
        "teacher__name": "hovernet",
        "teacher__weights": tmp_path / "weights.pth",
        "train__batch_size": 15,
        "workers__num_workers": 2,
    }
    argv = arguments([*slides, tmp_path / "none.svs"], tmp_path / "file" / "run", format="json", **faults)
    code, checks, said = told(capsys, argv)
    assert code == 1 and not said["ok"] and said["plan"] is None
    assert {name for name, each in checks.items() if each["state"] == "FAIL"} >= {
        "settings",
        "storage",
        "teacher",
        "slide list",
    }
    assert "--train.batch_size 15" in checks["settings"]["found"]
    assert "weights.pth" in checks["teacher"]["found"]
    assert "--run_folder" in checks["storage"]["mend"]
    assert "none.svs" in checks["slide list"]["found"]
    assert all(each["mend"] for each in checks.values() if each["state"] != "PASS")

    few = arguments(
        [*slides, tmp_path / "broken.svs"], tmp_path / "run", format="json", workers__cpus_per_worker=9, sample_slides=9
    )
    code, checks, _ = told(capsys, few)
    assert code == 1 and "9.5 CPUs" in checks["resources"]["found"]
    assert checks["slides"]["state"] == "WARN" and "broken.svs: unreadable" in checks["slides"]["found"]
