"""Sweeps on a real local Ray cluster: data sets and starts in, one table out; and what must be refused first."""

import json
import signal

import psutil
import pytest
import yaml

from csat.model.files import load_exported, save_model
from csat.model.student import Student, StudentConfig
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.tasks import DatasetInfo, Task, heads_of
from tests.support.labelled_folders import COLORS, data_settings, make_folder, sweep_settings
from tests.support.verbs import interrupt, runs_alone, wait_for
from workflows import tune

FRAIL = {"train": {"optim": {"lr": 1e30, "clip_grad_norm": None}}}  # no training survives this


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two data sets."""
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("a", "b")):
        make_folder(folder / name, num_groups=6, per_group=2, seed=seed)
    return folder


def command(folder, run_folder, **settings) -> list[str]:
    """Command line of a small sweep; `settings` replace those of `sweep_settings`."""
    sets = {"data_sets": {"a": data_settings("a")}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**sweep_settings(**sets), **settings}))
    return ["--config", str(recipe), "--run_folder", str(run_folder)]


def read_json(*parts):
    return json.loads(files.read_bytes(files.join(*map(str, parts))))


def refuse(capsys, argv, *words):
    """A sweep that must not start, and what its message must say."""
    assert tune.main(argv) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message, message
    assert "Traceback" not in message


class TestRefusals:
    """Before Ray is started."""

    def refuse(self, capsys, images, tmp_path, words, *, more=(), **settings):
        refuse(capsys, [*command(tmp_path, tmp_path / "run", data_root=str(images), **settings), *more], *words)
        assert not (tmp_path / "run" / "cells").exists()

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("--searcher=bohb", ["searcher is one of optuna, random, grid", "'bohb'"]),
            ("--searcher=grid", ["searcher grid tries all choices", "is a range"]),
            ("--settings_from.a=b", ["settings_from and --search_only name 'b'; the data sets are: a"]),
            ("--only=[b]", ["only names 'b'; the data sets are: a"]),
            ("--questions.gain=[nano, csat]", ["questions.gain compares two or more of nano, not ['nano', 'csat']"]),
            ("--scheduler=hyperband", ["scheduler is one of asha, none"]),
            ("--final_seeds=0", ["final_seeds must be at least 1"]),
            ("--cpus_per_trial=0", ["cpus_per_trial must be above 0"]),
            ("--num_trails=3", ["no setting 'num_trails'", "num_trials"]),
            ("--search.train.optim.lr={logunifrom: [1, 2]}", ["search.train.optim.lr", "Did you mean loguniform"]),
            ("--base.train.epoch=3", ["a x nano", "no setting 'train.epoch'. Did you mean train.epochs"]),
            ("--base.metric=dice", ["a x nano", "'dice'", "balanced_accuracy"]),
            ("--starts.nano.model.name=csat_nanno", ["a x nano", "csat_nanno", "csat_nano"]),
        ],
    )
    def test_settings(self, images, tmp_path, capsys, argument, words):
        self.refuse(capsys, images, tmp_path, words, more=[argument])

    def test_a_data_set_that_is_not_there(self, images, tmp_path, capsys):
        self.refuse(capsys, images, tmp_path, ["c x nano", str(images / "c")], data_sets={"c": data_settings("c")})

    def test_a_class_without_enough_groups(self, tmp_path, capsys):
        folder = make_folder(tmp_path / "few", num_groups=2)
        sets = {"few": data_settings(str(folder))}
        self.refuse(capsys, tmp_path, tmp_path, ["few x nano", *COLORS], data_sets=sets)

    def test_a_start_without_its_run(self, images, tmp_path, capsys):
        start = {"model": {"name": "csat_nano", "init": "run", "from_run": str(tmp_path / "nothing")}}
        self.refuse(capsys, images, tmp_path, ["a x rckd", str(tmp_path / "nothing")], starts={"rckd": start})

    def test_a_start_from_a_run_of_another_backbone(self, images, tmp_path, capsys):
        info = DatasetInfo(name="x", task=Task.CLASSIFICATION, classes=("a", "b"), mpp=None, licence="", source="", group="")
        student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), heads_of(info))
        save_model(student, str(tmp_path / "other" / "exported"), {"tile_px": 32})
        start = {"model": {"name": "csat", "init": "run", "from_run": str(tmp_path / "other")}}
        words = ["a x rckd", "'csat_nano'", "model.name is 'csat'"]
        self.refuse(capsys, images, tmp_path, words, starts={"fine": {"model": {"name": "csat_nano"}}, "rckd": start})

    def test_a_choice_that_no_model_can_have(self, images, tmp_path, capsys):
        search = {"model.drop_path": {"choice": [0.0, 0.1]}, "model.decoder_channels": {"choice": [8, 0]}}
        self.refuse(capsys, images, tmp_path, ["a x nano"], search=search)


@pytest.fixture(scope="module")
def finished(ray_cluster, images, tmp_path_factory):
    """One good data set and one whose every training fails, from two starts."""
    folder = tmp_path_factory.mktemp("sweep")
    argv = command(
        folder,
        folder / "run",
        data_root=str(images),
        data_sets={"a": data_settings("a"), "frail": {**data_settings("b"), **FRAIL}},
        starts={"nano": {"model.name": "csat_nano"}, "wide": {"model": {"name": "csat_nano", "decoder_channels": 12}}},
        search={"train.optim.weight_decay": {"uniform": [0.0, 0.2]}},
        num_trials=2,
        max_concurrent=1,
    )
    return folder / "run", argv, tune.main(argv)


@pytest.mark.ray
class TestWithACluster:
    pytestmark = pytest.mark.usefixtures("ray_cluster")

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("--max_concurrent=9", ["9 at once 4.5", "the cluster has 4", "--max_concurrent 8"]),
            ("--cpus_per_trial=5", ["one trial needs 5 CPUs", "--cpus_per_trial"]),
            ("--gpus_per_trial=0.5", ["one trial needs 0.5 GPUs", "the cluster has 0", "--gpus_per_trial"]),
        ],
    )
    def test_more_than_the_cluster_has(self, images, tmp_path, capsys, argument, words):
        refuse(capsys, [*command(tmp_path, tmp_path / "run", data_root=str(images)), argument], *words)

    def test_it_ends_in_a_table(self, finished):
        folder, _, code = finished
        assert code == 1, "a cell failed"
        nano, wide, *frail = read_json(folder, "table.json")
        assert [(row["data_set"], row["start"], row["seeds"]) for row in (nano, wide)] == [("a", "nano", 2), ("a", "wide", 2)]
        for row in (nano, wide):
            assert (row["metric"], row["part"], row["trials"]) == ("balanced_accuracy", "test", 2)
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
            assert row["macs"] > 0 and row["images_per_s"] > 0
        assert wide["difference"] == pytest.approx(wide["value"] - nano["value"])
        assert wide["parameters"] > nano["parameters"]
        for row in frail:
            assert (row["seeds"], row["failed"], row["value"]) == (0, 2, None)
            assert row["note"].startswith("all 2 trials failed; the first: step")
            assert "not finite" in row["note"]
        assert (folder / "table.csv").read_text().count("\n") == 5
        assert (folder / "report.html").read_text().count("data:image/png") == 2, "of cells in which something was measured"

    def test_the_best_is_kept_and_the_rest_is_tidied(self, finished):
        folder, _, _ = finished
        cell = folder / "cells" / "a" / "nano"
        best = read_json(cell, "cell.json")["best"]
        for number in range(2):
            trial = cell / "trials" / f"{number:03d}"
            for name in ("checkpoints", "exported"):
                assert (trial / name).exists() == (number == best), (trial, name)
            for name in ("config.yaml", "metrics.jsonl", "validation.jsonl", "evaluation.json", "status.json"):
                assert (trial / name).exists()
        seeds = [yaml.safe_load((cell / "seeds" / f"{number:03d}" / "config.yaml").read_text()) for number in range(2)]
        assert [seed["train"]["seed"] for seed in seeds] == [1, 2]
        assert seeds[0]["train"]["optim"] == seeds[1]["train"]["optim"]
        load_exported(str(cell / "seeds" / "001" / "exported"))
        assert not (folder / "ray").exists()

    def test_a_finished_sweep_says_so_and_shows_its_table(self, finished, capsys):
        _, argv, _ = finished
        assert tune.main([*argv, "--max_concurrent=2"]) == 1
        out = capsys.readouterr().out
        assert "nothing to do" in out
        assert "frail" in out and "all 2 trials failed" in out

    def test_another_sweep_in_its_folder_is_refused(self, finished, capsys):
        _, argv, _ = finished
        refuse(capsys, [*argv, "--base.train.epochs=5"], "base.train.epochs: was 4, is 5")


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.usefixtures("ray_cluster")
def test_one_search_for_two_data_sets_and_a_table_for_each_question(images, tmp_path, capsys):
    argv = command(
        tmp_path,
        tmp_path / "run",
        data_root=str(images),
        data_sets={"tenth": data_settings("b"), "all": data_settings("a")},
        starts={"nano": {"model.name": "csat_nano"}, "wide": {"model": {"name": "csat_nano", "decoder_channels": 12}}},
        searcher="grid",
        search={"train.optim.lr": {"choice": [1.0e-4, 3.0e-3]}},
        settings_from={"tenth": "all"},
        search_only=["all"],
        scheduler="none",
        final_seeds=1,
    )
    # A data set at a time.
    refuse(capsys, [*argv, "--only=[tenth]"], "only asks for tenth, whose setting all is searched for", "add all to only")
    assert tune.main([*argv, "--only=[all]"]) == 0
    assert "not done yet: tenth" in capsys.readouterr().out and read_json(tmp_path / "run" / "table.json") == []
    assert not (tmp_path / "run" / "cells" / "tenth").exists()
    searched = (tmp_path / "run" / "cells" / "all" / "nano" / "cell.json").stat().st_mtime_ns
    assert tune.main([*argv, "--questions.wider=[nano, wide]"]) == 0
    assert (tmp_path / "run" / "cells" / "all" / "nano" / "cell.json").stat().st_mtime_ns == searched
    cells = tmp_path / "run" / "cells"
    for start in ("nano", "wide"):
        whole, tenth = (read_json(cells / name / start / "cell.json") for name in ("all", "tenth"))
        assert [trial["params"]["train.optim.lr"] for trial in whole["trials"]] == [1.0e-4, 3.0e-3] and whole["seeds"] == []
        chosen = whole["trials"][whole["best"]]["params"]
        assert (tenth["trials"], tenth["given"], len(tenth["seeds"])) == ([], chosen, 1)
        seed = yaml.safe_load((cells / "tenth" / start / "seeds" / "000" / "config.yaml").read_text())
        assert seed["train"]["optim"]["lr"] == chosen["train.optim.lr"]
    assert [row["data_set"] for row in read_json(tmp_path / "run" / "table.json")] == ["tenth", "tenth"]
    # Another question to a finished sweep computes nothing but its table.
    capsys.readouterr()
    assert tune.main([*argv, "--questions.narrower=[wide, nano]"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "wider.md").read_text().startswith("|  | nano | wide | wide minus nano |")
    assert (tmp_path / "run" / "narrower.md").read_text().startswith("|  | wide | nano | nano minus wide |")


def check_cell(cell, *, num_trials, num_seeds):
    """All runs have ended, each of them trained every step once."""
    record = read_json(cell, "search.json")
    assert len(record["trials"]) == num_trials
    assert sorted(path.name for path in (cell / "trials").iterdir()) == [f"{number:03d}" for number in range(num_trials)]
    result = read_json(cell, "cell.json")
    assert [trial["params"] for trial in result["trials"]] == [trial["params"] for trial in record["trials"]]
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "pruned"}
    assert len(result["seeds"]) == num_seeds
    for run in [*(cell / "trials").iterdir(), *(cell / "seeds").iterdir()]:
        for file in ("metrics", "validation"):
            steps = [line["step"] for line in read_metrics(str(run), file)]
            assert steps == sorted(set(steps)), run
    for uri in result["seeds"]:
        assert len(Checkpoints(files.join(uri, "checkpoints")).latest_cursor().done.pairs()) == 1
    return result


@pytest.fixture(scope="module")
def killed(images, tmp_path_factory):
    """A sweep over two data sets: SIGKILL to driver and cluster while a trial of the first runs. What had ended, and when."""
    folder = tmp_path_factory.mktemp("killed")
    sets = {name: data_settings(name) for name in ("a", "b")}
    argv = command(folder, folder / "run", data_root=str(images), data_sets=sets, num_trials=3, final_seeds=1)
    cell = folder / "run" / "cells" / "a" / "nano"
    with runs_alone() as start:
        first = start(argv, folder / "first", "tune")
        wait_for(lambda: in_the_middle(cell), first, folder / "first")
    ended = {path.parent: path.stat().st_mtime_ns for path in cell.glob("trials/*/status.json") if has_ended(path.parent)}
    assert not (cell / "cell.json").exists()
    return folder, argv, read_json(cell, "search.json")["trials"], ended


@pytest.fixture(scope="module")
def interrupted(killed):
    """The same command; the processes of its running trials are killed, which are resumed in others; a seed is interrupted."""
    folder, argv, *_ = killed
    log, cell = folder / "second", folder / "run" / "cells" / "b" / "nano"
    with runs_alone() as start:
        second = start(argv, log, "tune")
        wait_for(lambda: in_the_middle(cell), second, log)
        processes = psutil.Process(second.pid).children(recursive=True)
        trainers = [process for process in processes if "ray::ImplicitFunc" in " ".join(process.cmdline())]
        assert trainers
        for process in trainers:
            process.kill()
        wait_for(lambda: list((cell / "seeds").glob("*/metrics.jsonl")), second, log)
        kept = interrupt(second, log, signal.SIGTERM, to_group=True)
    return kept


@pytest.mark.ray
@pytest.mark.thorough
class TestKilledAndInterrupted:
    def test_it_is_killed_in_the_middle(self, killed):
        *_, ended = killed
        assert 1 <= len(ended) < 3

    def test_it_says_how_many_runs_it_keeps(self, killed, interrupted):
        run = killed[0] / "run"
        num_ended = sum(has_ended(path.parent) for path in run.rglob("status.json") if path.parent != run)
        assert interrupted.startswith(f"{num_ended} runs") and num_ended > len(killed[3])

    def test_it_ends_with_the_same_trials_and_none_trained_twice(self, killed, interrupted, run_alone):
        folder, argv, before, ended = killed
        third = run_alone(argv, folder / "third", "tune")
        assert third.wait(timeout=280) == 0, (folder / "third").read_text()[-3000:]
        for name in ("a", "b"):
            check_cell(folder / "run" / "cells" / name / "nano", num_trials=3, num_seeds=1)
        after = read_json(folder, "run", "cells", "a", "nano", "search.json")["trials"]
        assert [trial["params"] for trial in after[: len(before)]] == [trial["params"] for trial in before]
        for run, changed in ended.items():
            assert (run / "status.json").stat().st_mtime_ns == changed, f"{run} was trained again"
        assert [row["seeds"] for row in read_json(folder, "run", "table.json")] == [1, 1]


def has_ended(run):
    return read_json(run, "status.json")["state"] in ("finished", "pruned")


def in_the_middle(cell):
    """Whether a trial has ended and another has a checkpoint."""
    runs = [path.parent for path in cell.glob("trials/*/status.json")]
    ended = [run for run in runs if has_ended(run)]
    return bool(ended) and any((run / "checkpoints" / "latest.json").exists() for run in runs if run not in ended)


@pytest.mark.ray
@pytest.mark.thorough
def test_a_sweep_in_a_bucket_whose_trials_have_two_workers(s3, tmp_path, run_alone, capsys):
    """Images and run folder in a bucket, Ray Tune's own notes too.

    A trial is a group under Ray Train; its validations reach Tune all the same. (Which of several is kept: above.)
    """
    folder = make_folder(tmp_path / "a", num_groups=6, per_group=2)
    for path in folder.rglob("*.png"):
        files.write_bytes(files.join(s3, "data", path.relative_to(tmp_path)), path.read_bytes())
    settings = dict(data_root=f"{s3}/data", num_trials=1, final_seeds=1, max_concurrent=1)
    argv = command(tmp_path, f"{s3}/sweep", **settings)
    argv += ["--base.workers.num_workers=2", "--base.workers.cpus_per_worker=0.5", "--base.train.epochs=2"]
    log = tmp_path / "log"
    assert run_alone(argv, log, "tune").wait(timeout=250) == 0, log.read_text()[-3000:]
    (row,) = read_json(s3, "sweep", "table.json")
    assert (row["seeds"], row["trials"], row["failed"]) == (1, 1, 0)
    cell = f"{s3}/sweep/cells/a/nano"
    assert not files.exists(f"{s3}/sweep/ray")
    assert files.exists(f"{cell}/seeds/000/exported/config.json")
    assert b"data:image/png" in files.read_bytes(f"{s3}/sweep/report.html")
    result = read_json(cell, "cell.json")
    assert all(trial["metric"] is not None for trial in result["trials"])
    (seed,) = result["seeds"]
    assert [round(line["epoch"]) for line in read_metrics(seed, "validation")] == [1, 2]
    assert len(Checkpoints(files.join(seed, "checkpoints")).latest_cursor().done.pairs()) == 1
    assert files.exists(f"{cell}/trials/000/checkpoints"), "of the best"
    assert tune.main(argv) == 0
    assert "nothing to do" in capsys.readouterr().out
