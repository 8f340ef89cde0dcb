"""A trial of a sweep, or a run without a group, that is asked to end again and again: plain, as it runs in one process."""

import json

import pytest

from csat.errors import StoppedError
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from tests.support.labelled_folders import data_settings, make_folder
from workflows.finetuning import fit as finetuning
from workflows.finetuning.check import check
from workflows.finetuning.config import read_config
from workflows.shell.decode_samples import Prepared

SETTINGS = {
    "model": {"name": "csat_nano", "decoder_channels": 8},
    "train": {"epochs": 4, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_s": None},
    "num_bootstraps": 50,
    "report_samples": 1,
}


class Asks:
    """Says that the run is to end from the n-th time on that it is asked."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self) -> bool:
        self.number -= 1
        return self.number < 0


def fit(folder, images, is_stopped=lambda: False):
    plain = {**SETTINGS, **data_settings(str(images), tile_px=32, memory_gb=0.05), "run_folder": str(folder)}
    config = read_config(plain)
    prepared = Prepared(check(config), config.data)
    return finetuning.fit(config, prepared, in_this_process=True, is_stopped=is_stopped)


def num_done(folder):
    return len(Checkpoints(str(folder / "checkpoints")).latest_cursor().done)


def status(folder):
    return json.loads((folder / "status.json").read_text())["state"]


def test_wherever_it_is_stopped_it_ends_as_if_it_had_not_been(tmp_path):
    """Between steps, in validations and while the test part is judged."""
    images = make_folder(tmp_path / "images", num_groups=6, per_group=2)
    whole = fit(tmp_path / "whole", images)
    folder, trained, total = tmp_path / "stopped", [], num_done(tmp_path / "whole")
    for is_stopped in (Asks(3), Asks(9), Asks(2), lambda: num_done(folder) == total):
        with pytest.raises(StoppedError):
            fit(folder, images, is_stopped)
        assert status(folder) == "interrupted"
        trained.append(num_done(folder))
    assert trained == sorted(trained) and 0 < trained[0] < trained[2] < total == trained[3]
    assert not (folder / "evaluation.json").exists(), "the last one was judging"
    stopped = fit(folder, images)
    assert status(folder) == "finished"
    for name in ("val", "test", "best_step", "best_metric"):
        assert stopped[name] == whole[name], name
    steps = [line["step"] for line in read_metrics(str(folder))]
    assert steps == [line["step"] for line in read_metrics(str(tmp_path / "whole"))], "each step once"
    accounts = [json.loads((place / "accounting.json").read_text()) for place in (folder, tmp_path / "whole")]
    assert accounts[0] == accounts[1]
