"""Optimiser groups, the schedule over them, old states, and frozen parts that really do not move."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from csat.columns import OK, POSITION, READ_S, REASON, STATUS, TARGET_PREFIX, TEACHER_S, TILE
from csat.errors import ConfigError
from csat.methods.contract import Setting
from csat.methods.registry import build_method
from csat.model.registry import ModelConfig, build_model
from csat.runs.plan import Plan
from csat.tasks import DatasetInfo, Task
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig, WeightAverage, get_lr, make_optimiser, set_lr

TILE_PX, NUM_TILES = 16, 8
CLASSES = ("dark", "bright")


def unet(task=Task.SEGMENTATION, **settings):
    torch.manual_seed(0)
    info = DatasetInfo(name="x", task=task, classes=CLASSES, mpp=None, licence="", source="", group="image")
    config = ModelConfig(name="unet", options={"width": 4, "depth": 2}, **settings)
    return build_model(config, info, lambda run: unet(task)[0]), info


def make_trainer(folder, method, **optim):
    """A run of two epochs over eight tiles whose bright half is to be found."""

    def batches(size):
        for start in range(0, 2 * NUM_TILES, size):
            positions = np.arange(start, start + size)
            tiles = np.stack([np.random.default_rng(p % NUM_TILES).integers(0, 256, (TILE_PX, TILE_PX, 3)) for p in positions])
            yield {
                POSITION: positions,
                TILE: tiles.astype(np.uint8),
                STATUS: np.full(size, OK, np.uint8),
                REASON: np.array([""] * size, dtype=object),
                READ_S: np.zeros(size, np.float32),
                TEACHER_S: np.zeros(size, np.float32),
                "slide": np.array(["a"] * size, dtype=object),
                "x_px": positions,
                "y_px": positions,
                TARGET_PREFIX + "mask": (tiles.mean(3) > 128).astype(np.uint8),
            }

    config = TrainConfig(epochs=2, batch_size=4, optim=OptimConfig(**{"lr": 0.01, "warmup": 0.0, **optim}))
    plan = Plan([NUM_TILES], [0], num_epochs=2, seed=0)
    return Trainer(method, plan, TrainContext(batches), config, run_folder=str(folder), tile_px=TILE_PX)


def segmenter(**settings):
    model, info = unet(**settings)
    return build_method("supervised", {}, model, Setting(tile_px=TILE_PX, data=info))


class TestGroups:
    def test_the_default_is_two_groups(self):
        """Weights, and vectors without decay: in the order of every earlier version, since saved states go by order."""
        model, _ = unet()
        groups = make_optimiser(model, OptimConfig(weight_decay=0.1)).param_groups
        parameters = list(model.parameters())
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert [[id(p) for p in group["params"]] for group in groups] == [
            [id(p) for p in parameters if p.ndim >= 2],
            [id(p) for p in parameters if p.ndim < 2],
        ]

    def test_each_layer_has_its_rate(self):
        model, _ = unet()
        groups = make_optimiser(model, OptimConfig(layer_decay=0.5, head_lr=4.0)).param_groups
        scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        assert {name: scale_of[id(p)] for name, p in model.named_parameters()} == model.lr_scales(0.5, 4.0)
        assert len(scale_of) == len(list(model.parameters()))
        for group in groups:
            assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}

    def test_frozen_weights_are_in_no_group(self):
        model, _ = unet(init="run", from_run="x", freeze="backbone")
        grouped = {
            id(p) for group in make_optimiser(model, OptimConfig(layer_decay=0.5)).param_groups for p in group["params"]
        }
        assert not grouped & {id(p) for p in model.encoder.parameters()}
        assert grouped == {id(p) for p in model.parameters() if p.requires_grad}

    def test_a_module_without_parts(self):
        make_optimiser(nn.Linear(2, 2), OptimConfig())
        for settings in ({"layer_decay": 0.9}, {"head_lr": 2.0}):
            with pytest.raises(ConfigError, match="layer_decay and head_lr are for models whose parts are told apart"):
                make_optimiser(nn.Linear(2, 2), OptimConfig(**settings))

    @pytest.mark.parametrize("settings", [{"layer_decay": 0.0}, {"layer_decay": 1.1}, {"head_lr": 0.0}])
    def test_factors_that_cannot_be(self, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            OptimConfig(**settings)


class TestSchedule:
    def test_warmup_and_cosine_keep_the_ratios(self):
        config = OptimConfig(lr=0.1, warmup=0.2, layer_decay=0.5, head_lr=4.0)
        optimiser = make_optimiser(unet()[0], config)
        scales = [group["lr_scale"] for group in optimiser.param_groups]
        assert sorted(set(scales)) == [0.125, 0.25, 0.5, 1.0, 4.0]
        for progress in (0.0, 0.1, 0.2, 0.6, 1.0):
            set_lr([optimiser], config.lr_at(progress))
            rates = [group["lr"] for group in optimiser.param_groups]
            assert rates == pytest.approx([config.lr_at(progress) * scale for scale in scales])
            assert get_lr(optimiser) == pytest.approx(config.lr_at(progress))

    def test_a_step_moves_each_layer_by_its_rate(self):
        """Adam's first step is the learning rate times the gradient's sign."""
        model, _ = unet()
        optimiser = make_optimiser(model, OptimConfig(weight_decay=0.0, layer_decay=0.5, head_lr=2.0))
        set_lr([optimiser], 0.01)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        sum(prediction.square().mean() for prediction in model(torch.rand(2, 3, 16, 16)).values()).backward()
        optimiser.step()
        for name, scale in model.lr_scales(0.5, 2.0).items():
            parameter = dict(model.named_parameters())[name]
            moved = (parameter.detach() - before[name]).abs()[parameter.grad.abs() > 1e-4]
            if len(moved):
                assert moved.mean().item() == pytest.approx(0.01 * scale, rel=0.01), name

    def test_the_curve(self):
        config = OptimConfig(lr=2.0, warmup=0.1, final_lr=0.25)
        assert config.lr_at(0.0) == pytest.approx(0.02) and config.lr_at(0.1) == pytest.approx(2.0)
        assert config.lr_at(0.55) == pytest.approx(2.0 * (0.25 + 0.75 * 0.5)) and config.lr_at(1.0) == pytest.approx(0.5)
        rates = [config.lr_at(step / 100) for step in range(10, 101)]
        assert all(math.isfinite(rate) for rate in rates) and rates == sorted(rates, reverse=True)


class TestResume:
    def test_a_state_from_before_there_were_scales(self, tmp_path):
        model, _ = unet()
        optimiser = make_optimiser(model, OptimConfig())
        sum(prediction.mean() for prediction in model(torch.rand(1, 3, 16, 16)).values()).backward()
        optimiser.step()
        old = optimiser.state_dict()
        for group in old["param_groups"]:
            del group["lr_scale"]
        again = make_optimiser(model, OptimConfig())
        again.load_state_dict(old)
        set_lr([again], 0.5)
        assert [group["lr"] for group in again.param_groups] == [0.5, 0.5] and get_lr(again) == 0.5
        again.step()

    def test_a_run_goes_on_with_its_rates(self, tmp_path):
        optim = {"layer_decay": 0.5, "head_lr": 2.0, "ema_decay": None}
        whole = make_trainer(tmp_path / "whole", segmenter(), **optim)
        whole.run()
        first = make_trainer(tmp_path / "cut", segmenter(), **optim)
        stream = first.context.batches
        first.context.batches = lambda size: (rows for index, rows in enumerate(stream(size)) if index < 2)
        with pytest.raises(RuntimeError, match="tile accounting"):  # half of the tiles never came; what came is saved
            first.run()
        second = make_trainer(tmp_path / "cut", segmenter(), **optim)
        assert second.step == 2
        second.context.batches = lambda size: (rows for index, rows in enumerate(stream(size)) if index >= 2)
        second.run()
        for name, tensor in whole.learner.method.state_dict().items():
            torch.testing.assert_close(second.learner.method.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("freeze", ["backbone", "backbone+decoder"])
def test_frozen_parts_do_not_move(tmp_path, freeze):
    """Not by gradients, not by weight decay, not in the average, and their norms' statistics neither."""
    method = segmenter(init="run", from_run="x", freeze=freeze)
    model = method.part("student")
    parts = freeze.split("+")
    before = {part: {k: v.clone() for k, v in model.tensors_of(part).items()} for part in ("backbone", "decoder", "heads")}
    trainer = make_trainer(tmp_path, method, weight_decay=0.5, ema_decay=0.9)
    trainer.run()
    averaged = trainer.learner.averaged_state()
    for part, tensors in before.items():
        now = model.tensors_of(part)
        for name, tensor in tensors.items():
            is_same = torch.equal(now[name], tensor) and torch.equal(averaged[f"model.{name}"], tensor)
            assert is_same or part not in parts, name
        assert part in parts or not all(torch.equal(now[name], tensor) for name, tensor in tensors.items())
    if "decoder" not in parts:
        statistics = [name for name in before["decoder"] if name.endswith("running_mean")]
        assert statistics and not any(torch.equal(model.tensors_of("decoder")[n], before["decoder"][n]) for n in statistics)


def test_the_average_of_weights_that_do_not_move_is_exact():
    module = nn.Linear(50, 50)
    average = WeightAverage(module, OptimConfig(ema_decay=0.999))
    for step in range(200):
        average.update(module, step)
    assert torch.equal(average.tensors["weight"], module.weight)
