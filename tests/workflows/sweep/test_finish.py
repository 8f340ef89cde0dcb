"""How a sweep ends: its table, and one for each question."""

from csat.runs.folder import RunFolder
from csat.sweeps.trial import CellResult, Trial
from tests.support.made_up_sweeps import write_seed
from workflows.sweep.finish import finish

SEARCHED = (Trial(number=0, params={"train.optim.lr": 0.01}, state="finished", metric=0.5),)


def results(folder):
    """Two starts on a data set that is searched for another one alone, and on that other one."""
    for start, skill in (("scratch", 1.0), ("rckd", 3.0)):
        uris = tuple(write_seed(folder / start / str(seed), seed=seed, skill=skill) for seed in range(2))
        given = SEARCHED[0].params
        yield CellResult(data_set="all", start=start, trials=SEARCHED, best=0, seeds=())
        yield CellResult(data_set="tenth", start=start, trials=(), best=None, seeds=uris, given=given)


def test_questions_have_tables_of_their_own(tmp_path, capsys):
    folder, ended = RunFolder(str(tmp_path / "sweep")), list(results(tmp_path / "seeds"))
    questions = {"gain": ["scratch", "rckd"], "loss": ["rckd", "scratch"]}
    assert finish(folder, ended, (), num_bootstraps=50, questions=questions) == 0
    assert [(row["data_set"], row["start"]) for row in folder.read_json("table.json")] == [
        ("tenth", "scratch"),
        ("tenth", "rckd"),
    ]
    assert folder.read_json("table.json")[0]["params"] == {"train.optim.lr": 0.01}
    gain, loss = ((tmp_path / "sweep" / f"{name}.md").read_text() for name in questions)
    assert gain.startswith("|  | scratch | rckd | rckd minus scratch |") and "| +0." in gain
    assert loss.startswith("|  | rckd | scratch | scratch minus rckd |") and "| -0." in loss
    assert gain.strip() in capsys.readouterr().out


def test_a_cell_that_failed_is_an_exit_code(tmp_path, capsys):
    ended = [
        *results(tmp_path / "seeds"),
        CellResult(data_set="x", start="scratch", trials=(), best=None, seeds=(), error="gone"),
    ]
    assert finish(RunFolder(str(tmp_path / "sweep")), ended, (), num_bootstraps=50) == 1
    assert "x x scratch: gone" in capsys.readouterr().out


def test_what_is_not_done_yet_is_said(tmp_path, capsys):
    folder, ended = RunFolder(str(tmp_path / "sweep")), list(results(tmp_path / "seeds"))
    assert finish(folder, ended, (), num_bootstraps=50, later=["lung", "cells"]) == 0
    assert "not done yet: lung, cells; the same command without --only" in capsys.readouterr().out
    assert folder.read_json("status.json") == {"state": "interrupted"}
    assert finish(folder, ended, (), num_bootstraps=50) == 0
    assert "not done yet" not in capsys.readouterr().out
    assert folder.read_json("status.json") == {"state": "finished"}


def test_before_a_data_set_is_done_the_table_is_empty(tmp_path):
    folder = RunFolder(str(tmp_path / "sweep"))
    assert finish(folder, [], (), num_bootstraps=50, questions={"gain": ["scratch", "rckd"]}, later=["all"]) == 0
    assert folder.read_json("table.json") == []
