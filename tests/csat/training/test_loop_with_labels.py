"""The loop on labels: each task learns, validation measures and stops, killed runs resume bit by bit, ranks agree."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from csat.labels.augment import JointConfig
from csat.labels.order import SampleOrder
from csat.labels.reader import LabelledReader, read_here
from csat.methods.contract import Setting
from csat.methods.supervised import Supervised, SupervisedConfig
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.tasks import Task
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from csat.training.validation import Validation, ValidationConfig
from tests.support.forks import in_two_processes
from tests.support.labelled_toy import ListSource, TinyModel, draw_nuclei, draw_shades, make_info, make_samples

TILE_PX = 16
NUM_SAMPLES, EPOCHS, BATCH = 10, 4, 4  # 3 steps an epoch, the last of 2 tiles
LABELS = [index % 2 for index in range(NUM_SAMPLES)]
OPTIM = OptimConfig(lr=0.02, weight_decay=0.0, warmup=0.0)
CONFIG = TrainConfig(
    epochs=EPOCHS, batch_size=BATCH, log_every_steps=1, checkpoint_every_steps=2, checkpoint_every_s=None, optim=OPTIM
)
EASY = JointConfig(scale=0.1, brightness=0.05, blur_prob=0.0)
NEVER_BETTER = 1e6  # as min_delta: after the first validation, patience runs out


class Killed(Exception):
    pass


def plan_of(config: TrainConfig) -> Plan:
    return Plan([NUM_SAMPLES], [0], num_epochs=config.epochs, seed=config.seed)


def make_reader(task: Task, config: TrainConfig, broken=()) -> LabelledReader:
    if task == Task.CLASSIFICATION:
        decoded = draw_shades(LABELS, TILE_PX)
    else:
        decoded = [draw_nuclei(np.random.default_rng(index), 24, num=3) for index in range(NUM_SAMPLES)]
    samples = make_samples({f"p{index}": [LABELS[index]] for index in range(NUM_SAMPLES)})
    order = SampleOrder(plan_of(config), sampling="natural", labels=LABELS)
    source = ListSource([None if index in broken else one for index, one in enumerate(decoded)])
    options = {"augment": EASY, "tile_px": TILE_PX, "fit": "resize", "seed": config.seed}
    return LabelledReader(source, samples, make_info(task), order, **options)


def make_trainer(
    folder, *, task=Task.CLASSIFICATION, config=CONFIG, validation=None, has_norm=False, broken=(), cut=None, **settings
) -> Trainer:
    """Reads what the committed checkpoint has not done; `cut` kills it after so many batches."""
    info, reader, plan = make_info(task), make_reader(task, config, broken), plan_of(config)
    setting = Setting(tile_px=TILE_PX, data=info)
    method = Supervised(SupervisedConfig(**settings), TinyModel(info, has_norm=has_norm), setting)

    def batches(size):
        done = Checkpoints(str(folder / "checkpoints")).latest_cursor().done
        ranks = {"rank": context.rank, "world_size": context.world_size}
        for index, rows in enumerate(read_here(reader, plan, done, batch_size=size, **ranks)):
            if index == cut:
                raise Killed
            yield rows

    context = TrainContext(batches)
    return Trainer(method, plan, context, config, run_folder=str(folder), tile_px=TILE_PX, validation=validation)


VAL_LABELS = torch.tensor([0, 1, 1, 0])
VAL_TILES = torch.from_numpy(np.stack([one.image for one in draw_shades(VAL_LABELS.tolist(), TILE_PX, seed=9)]))
VAL_IMAGES = VAL_TILES.permute(0, 3, 1, 2).float() / 255


def measure_loss(model, context) -> dict[str, float]:
    """Of the validation images, each rank its share."""
    mine = slice(context.rank, None, context.world_size)
    losses = F.cross_entropy(model(VAL_IMAGES[mine])["label"], VAL_LABELS[mine], reduction="none")
    return {"metric": -float(np.mean(sum(context.gather(losses.tolist()), [])))}


def make_validation(measure=measure_loss, **settings) -> Validation:
    return Validation(ValidationConfig(**settings), measure, tiles_per_epoch=NUM_SAMPLES)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("task", Task)
def test_each_task_learns(tmp_path, task):
    config = TrainConfig(epochs=16, batch_size=5, log_every_steps=1, optim=OptimConfig(lr=0.05, warmup=0.0))
    trainer = make_trainer(tmp_path, task=task, config=config)
    cursor = trainer.run()
    assert cursor.counts == {epoch: [NUM_SAMPLES, 0, 0] for epoch in range(16)}
    lines = read_metrics(str(tmp_path))
    assert len(lines) == 32
    first, last = (np.mean([line["loss"] for line in some]) for some in (lines[:4], lines[-4:]))
    assert last < 0.8 * first
    assert {f"loss/{name}" for name in trainer.learner.method.weights} <= lines[0].keys()


def test_half_precision_learns(tmp_path):
    config = TrainConfig(epochs=8, batch_size=5, log_every_steps=1, optim=OPTIM, precision="bfloat16")
    make_trainer(tmp_path, config=config, validation=make_validation()).run()
    lines = read_metrics(str(tmp_path))
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_sample_that_cannot_be_read_is_counted_in_every_epoch(tmp_path):
    cursor = make_trainer(tmp_path, broken=(3,), validation=make_validation()).run()
    assert cursor.counts == {epoch: [NUM_SAMPLES - 1, 1, 0] for epoch in range(EPOCHS)}
    quarantine = Checkpoints(str(tmp_path / "checkpoints")).load().quarantine.to_pylist()
    assert {(row["slide"], row["reason"]) for row in quarantine} == {("p3-0", "unreadable")}
    assert len(quarantine) == EPOCHS


# -------------------------------------------------------------------------------------------------------------- validation


def test_what_is_measured_is_the_average_in_evaluation_mode_and_training_goes_on_as_it_was(tmp_path):
    seen = []

    def measure(model, context):
        assert not any(module.training for module in model.modules())
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        average = {name.removeprefix("model."): tensor for name, tensor in watched.learner.average.tensors.items()}
        assert_equal(seen[-1], average)
        return measure_loss(model, context)

    plain = make_trainer(tmp_path / "plain", has_norm=True)
    plain.run()
    watched = make_trainer(tmp_path / "watched", has_norm=True, validation=make_validation(measure, every_epochs=0.5))
    watched.run()
    assert len(seen) == 8
    assert all(module.training for module in watched.learner.method.part("student").modules())
    assert_equal(watched.learner.method.state_dict(), plain.learner.method.state_dict())
    assert_equal(watched.learner.average.tensors, plain.learner.average.tensors)
    assert "model.trunk.1.running_var" in watched.learner.average.tensors, "batch norm's statistics are swapped, too"


def test_without_an_average_the_weights_themselves_are_measured(tmp_path):
    config = TrainConfig(epochs=2, batch_size=BATCH, optim=OptimConfig(lr=0.02, ema_decay=None))
    validation = make_validation()
    trainer = make_trainer(tmp_path, config=config, validation=validation)
    trainer.run()
    assert len(read_metrics(str(tmp_path), "validation")) == 2
    if validation.best_step == trainer.step:
        assert_equal(validation.best_state, trainer.learner.method.state_dict())
    assert validation.best == pytest.approx(measure_best(trainer, validation), abs=1e-6)


def measure_best(trainer, validation) -> float:
    """The metric of the weights that were kept."""
    trainer.learner.method.load_state_dict(validation.best_state)
    return measure_loss(trainer.learner.method.part("student").eval(), trainer.context)["metric"]


def test_the_best_weights_are_kept(tmp_path):
    # A learning rate that does harm: the last weights are not the best.
    config = TrainConfig(epochs=6, batch_size=BATCH, optim=OptimConfig(lr=0.5, warmup=0.5, ema_decay=None))
    validation = make_validation()
    trainer = make_trainer(tmp_path, config=config, validation=validation)
    trainer.run()
    lines = read_metrics(str(tmp_path), "validation")
    metrics = [line["metric"] for line in lines]
    assert validation.best == max(metrics)
    assert validation.best_step == lines[int(np.argmax(metrics))]["step"]
    assert measure_best(trainer, validation) == pytest.approx(max(metrics), abs=1e-6)
    stored = Checkpoints(str(tmp_path / "checkpoints")).load().state["validation"]
    assert_equal(stored["best_state"], validation.best_state)


def test_a_run_that_gets_no_better_is_stopped_and_stays_stopped(tmp_path):
    validation = make_validation(patience=1, min_delta=NEVER_BETTER)
    cursor = make_trainer(tmp_path, validation=validation).run()
    assert cursor.counts == {0: [NUM_SAMPLES, 0, 0], 1: [NUM_SAMPLES, 0, 0]}
    assert cursor.step == 6
    assert [line["step"] for line in read_metrics(str(tmp_path), "validation")] == [3, 6]

    again = make_validation(patience=1, min_delta=NEVER_BETTER)
    trainer = make_trainer(tmp_path, validation=again, cut=0)
    assert trainer.run().step == 6
    assert_equal(again.best_state, validation.best_state)
    assert len(read_metrics(str(tmp_path), "validation")) == 2


@pytest.mark.parametrize("options", [{"has_norm": True, "mixup": 0.5}, {"broken": (2,), "label_smoothing": 0.1}])
def test_a_killed_run_ends_with_the_weights_and_the_validation_of_one_that_was_not(tmp_path, options):
    whole_validation, resumed_validation = (make_validation(every_epochs=0.5) for _ in range(2))
    whole = make_trainer(tmp_path / "whole", validation=whole_validation, **options)
    end = whole.run()

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", validation=make_validation(every_epochs=0.5), cut=7, **options).run()
    resumed = make_trainer(tmp_path / "cut", validation=resumed_validation, **options)
    assert 0 < resumed.step < 7
    assert resumed.run().counts == end.counts

    assert_equal(resumed.learner.method.state_dict(), whole.learner.method.state_dict())
    assert_equal(resumed.learner.average.tensors, whole.learner.average.tensors)
    assert_equal(resumed_validation.best_state, whole_validation.best_state)
    plain = [
        {name: value for name, value in one.state().items() if name != "best_state"}
        for one in (whole_validation, resumed_validation)
    ]
    assert plain[0] == plain[1]
    assert read_metrics(str(tmp_path / "cut"), "validation") == read_metrics(str(tmp_path / "whole"), "validation")


def test_patience_survives_a_kill(tmp_path):
    settings = {"patience": 2, "min_delta": NEVER_BETTER}
    whole = make_validation(**settings)
    end = make_trainer(tmp_path / "whole", validation=whole).run()
    assert end.step == 9, "stopped at the third of four epochs"
    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", validation=make_validation(**settings), cut=8).run()
    resumed = make_validation(**settings)
    assert make_trainer(tmp_path / "cut", validation=resumed).run().step == 9
    assert_equal(resumed.best_state, whole.best_state)


def test_a_run_killed_in_its_last_validation_measures_again_and_trains_nothing(tmp_path):
    def die(model, context):
        raise Killed

    config = TrainConfig(epochs=2, batch_size=BATCH, checkpoint_every_steps=1, optim=OPTIM)
    with pytest.raises(Killed):
        make_trainer(tmp_path, config=config, validation=make_validation(die, every_epochs=5)).run()
    validation = make_validation(every_epochs=5)
    trainer = make_trainer(tmp_path, config=config, validation=validation, cut=0)
    assert trainer.run().step == 6
    assert validation.best_step == 6
    assert Checkpoints(str(tmp_path / "checkpoints")).load().state["validation"]["best"] == validation.best


def test_validation_figures_reach_whoever_listens(tmp_path):
    heard = []
    trainer = make_trainer(tmp_path, validation=make_validation())
    trainer.context.on_validation = heard.append
    trainer.run()
    assert heard == read_metrics(str(tmp_path), "validation")
    assert [figures["epoch"] for figures in heard] == [1, 2, 3, 4]


# --------------------------------------------------------------------------------------------------------------- processes


def _rank(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    trainer = make_trainer(folder / "two", validation=make_validation())
    trainer.run()
    torch.save(trainer.validation.best_state, folder / f"plain{rank}.pt")
    # Batch norm's statistics differ between ranks; what is measured and kept does not.
    normed = make_trainer(folder / "normed", validation=make_validation(), has_norm=True)
    normed.run()
    torch.save(normed.validation.best_state, folder / f"normed{rank}.pt")
    try:
        make_trainer(folder / "cut", validation=make_validation(), cut=7).run()
    except Killed:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one_which_can_go_on_alone(tmp_path, free_port):
    one = make_trainer(tmp_path / "one", validation=make_validation())
    one.run()
    in_two_processes(_rank, tmp_path, free_port)
    kept = {
        name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("plain0", "plain1", "normed0", "normed1")
    }
    assert_equal(kept["plain0"], kept["plain1"])
    assert_equal(kept["normed0"], kept["normed1"])
    for name, tensor in one.validation.best_state.items():
        torch.testing.assert_close(kept["plain0"][name], tensor, rtol=2e-3, atol=2e-4)
    for file, key in (("metrics", "loss"), ("validation", "metric")):
        lines = [[line[key] for line in read_metrics(str(tmp_path / which), file)] for which in ("one", "two")]
        np.testing.assert_allclose(lines[0], lines[1], rtol=1e-3)

    resumed = make_trainer(tmp_path / "cut", validation=make_validation())
    assert 0 < resumed.step < 12
    assert resumed.run().counts == {epoch: [NUM_SAMPLES, 0, 0] for epoch in range(EPOCHS)}
    for name, tensor in one.learner.method.state_dict().items():
        torch.testing.assert_close(resumed.learner.method.state_dict()[name], tensor, rtol=2e-3, atol=2e-4)
