"""Several students on a real local Ray cluster: one run, and what other verbs make of each student's folder."""

import json

import pytest

from csat.model.files import load_exported
from csat.runs.recorder import read_metrics
from tests.stories.test_predict import arguments as predicting
from tests.stories.test_pretrain import check_accounts, read_json
from tests.support.verbs import HELD_OUT, arguments
from workflows import evaluate, export, predict, pretrain
from workflows.pretraining.start import EXIT_CODE_DIVERGED

STUDENTS = {"students__nano": "csat_nano", "students__half": "{backbone: csat_nano, decoder_channels: 16, downsample: 2}"}


@pytest.mark.ray
@pytest.mark.thorough
def test_one_run_and_what_becomes_of_each_student(ray_cluster, slides, tmp_path, capsys):
    """Two workers, two students: fidelity and cost of each; each is a run to predict, export, evaluate and a rerun."""
    run = tmp_path / "run"
    argv = arguments(slides, run, workers__num_workers=2, **HELD_OUT, **STUDENTS)
    assert pretrain.main(argv) == 0
    check_accounts(run, num_epochs=1)
    compared = read_json(run, "students.json")
    assert list(compared) == ["nano", "half"] and {each["state"] for each in compared.values()} == {"trained"}
    for name, student in compared.items():
        assert student["fidelity"]["student_vs_teacher.np.dice"]["tiles"] > 0 and student["tiles_per_s"] > 0
        folder = run / "students" / name
        assert read_json(folder, "evaluation.json") == student["fidelity"]
        lines = read_metrics(str(folder))
        assert [line["step"] for line in lines] == [line["step"] for line in read_metrics(str(run))]
        assert {spec.name for spec in load_exported(str(folder)).responses} == {"np", "hv"}
    assert compared["half"]["macs"] < compared["nano"]["macs"] / 2
    page = (run / "students.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and page.count("data:image/jpeg;base64,") == 3 * 4
    assert "this run is finished" not in capsys.readouterr().out
    assert pretrain.main(argv) == 0 and "this run is finished: nothing to do" in capsys.readouterr().out
    assert pretrain.main([*argv, "--students.half.downsample=4"]) == 2
    assert "students.half.downsample: was 2, is 4" in capsys.readouterr().err

    nano = run / "students" / "nano"
    predicted = predicting(slides[:1], tmp_path / "out", model__name=nano, data__mpp=0.5, data__tile_px=64, write="[nuclei]")
    assert predict.main(predicted) == 0 and list((tmp_path / "out" / "slides").glob("*/nuclei.parquet"))
    assert export.main([f"--model={nano}", f"--output={tmp_path / 'files'}", "--num_tiles=8", "--threads=1"]) == 0
    card = (tmp_path / "files" / "README.md").read_text()
    assert "of the run's slides, held out of its training" in card and "- Slides: 2 used" in card
    capsys.readouterr()
    assert predict.main(predicting(slides[:1], tmp_path / "other", model__name=run)) == 2
    assert "has several students: choose one of" in capsys.readouterr().err
    runs = json.dumps({name: str(run / "students" / name) for name in compared})
    assert evaluate.main([f"--runs={runs}", f"--run_folder={tmp_path / 'compared'}"]) == 2
    assert "no labelled images" in capsys.readouterr().err, "they are judged on images that somebody has labelled"


@pytest.mark.ray
@pytest.mark.thorough
def test_one_that_diverges_is_named_and_the_others_are_kept(ray_cluster, slides, tmp_path, capsys):
    """At a learning rate far too high a network without norms overflows within a few steps, and one with norms does not."""
    run = tmp_path / "run"
    settings = dict(
        students__nano=STUDENTS["students__nano"], students__normless="{backbone: test_nfnet, decoder_channels: 16}"
    )
    argv = arguments(slides, run, train__optim__lr=30, workers__num_workers=2, **HELD_OUT, **settings)
    for is_rerun in (False, True):
        assert pretrain.main(argv) == EXIT_CODE_DIVERGED
        said = capsys.readouterr().out
        assert ("this run is finished: nothing to do" in said) == is_rerun
        assert "student normless: diverged and was stopped, and has left no model: step" in said
    why = read_json(run, "accounting.json")["students"]["normless"]["error"]
    assert read_json(run, "status.json") == {"state": "finished", "diverged": {"normless": why}} and "not finite" in why
    assert read_json(run / "students" / "normless", "status.json")["state"] == "failed"
    compared = read_json(run, "students.json")
    assert 0 < compared["normless"]["tiles"] < compared["nano"]["tiles"] and compared["nano"]["state"] == "trained"
    assert compared["nano"]["fidelity"] and not compared["normless"]["fidelity"]
    assert {spec.name for spec in load_exported(str(run / "students" / "nano")).responses} == {"np", "hv"}
    assert not (run / "students" / "normless" / "exported").exists()
    for page in ("report.html", "students.html"):
        assert "normless diverged and was stopped after" in (run / page).read_text()
    assert predict.main(predicting(slides[:1], tmp_path / "out", model__name=run / "students" / "normless")) == 2
    assert "Traceback" not in (said := capsys.readouterr().err) and "normless" in said
