"""What a method needs first is trained as a run is: it resumes, and it is there only once all of it is trained."""

import numpy as np
import pytest
import torch

from csat.errors import StoppedError
from csat.methods.contract import FirstStage
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.first_stage import train_first_stage
from tests.support.toy import TILE_PX, ToyMethod, toy_plan, toy_stream

CONFIG = TrainConfig(epochs=9, batch_size=4, log_every_steps=1, checkpoint_every_s=None)  # of the run: the stage has 2


class ToyStage(FirstStage):
    """The toy method's student, in one file."""

    name, epochs = "toy", 2

    def __init__(self):
        self.method = ToyMethod()

    def make_method(self):
        return self.method

    def is_in(self, folder):
        return files.exists(files.join(folder, "toy.npy"))

    def save(self, folder):
        weights = torch.nn.utils.parameters_to_vector(self.method.parameters())
        files.write_bytes(files.join(folder, "toy.npy"), weights.detach().numpy().tobytes())

    def load(self, folder):
        raise AssertionError("nobody asked for it")

    def warning(self, figures):
        return f"ends at {figures['loss']:.4f}"


def train(folder, *, stop_after: int | None = None) -> None:
    done = Checkpoints(str(folder / "checkpoints")).latest_cursor().done
    left = [position for position in range(48) if not done.contains(np.array([position]))[0]]
    taken = []

    def batches(size):
        for rows in toy_stream(left, size):
            taken.append(rows)
            yield rows

    context = TrainContext(batches, is_stopped=lambda: stop_after is not None and len(taken) > stop_after)
    train_first_stage(ToyStage(), toy_plan(), context, CONFIG, folder=str(folder), tile_px=TILE_PX)


def test_a_stage_that_was_stopped_resumes_and_is_kept_once_all_of_it_is_trained(tmp_path, caplog):
    run, stage = str(tmp_path / "parts"), ToyStage()
    folder = tmp_path / "parts" / "toy"
    assert stage.folder(run) == str(folder) and stage.is_missing(run)
    with pytest.raises(StoppedError):
        train(folder, stop_after=5)
    done = len(Checkpoints(str(folder / "checkpoints")).latest_cursor().done)
    assert 0 < done < 48 and stage.is_missing(run) and not caplog.records
    train(folder)
    assert not stage.is_missing(run)
    lines = read_metrics(str(folder))
    assert [line["step"] for line in lines] == list(range(1, 13)) and lines[-1]["tiles_total"] == 48
    assert f"ends at {lines[-1]['loss']:.4f}" in caplog.text

    train(tmp_path / "whole")
    kept = [(each / "toy.npy").read_bytes() for each in (folder, tmp_path / "whole")]
    assert kept[0] == kept[1]
    assert Checkpoints(str(folder / "checkpoints")).load().state["average"] is None
