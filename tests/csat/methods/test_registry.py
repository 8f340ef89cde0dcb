"""From a recipe's settings to a method over the real student."""

import pytest
import torch

from csat.errors import ConfigError, TeacherError
from csat.methods.contract import Method
from csat.methods.rckd import RCKD, RCKDConfig
from csat.methods.registry import (
    CHANGED_DEFAULTS,
    LABELLED_METHODS,
    METHODS,
    build_method,
    read_options,
    spell_out,
    wanted_responses,
)
from csat.model.student import StudentConfig
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.views.colour import ColourConfig

TILE_PX = 64
TEACHER = TeacherSpec(
    name="fake",
    mpp=0.25,
    responses=(
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=10),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=10, symmetry=Symmetry.HV),
        ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3, crop_px=10),
        ResponseSpec(name="features", kind=Kind.FEATURES, channels=8, stride_px=None),
        ResponseSpec(name="cam", kind=Kind.ATTENTION, channels=3, stride_px=8),
    ),
)
NANO = StudentConfig(backbone="csat_nano")


def make_batch(num_tiles: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    responses = {}
    for spec in TEACHER.responses:
        x = torch.randn(num_tiles, *spec.shape(TILE_PX), generator=generator)
        if spec.kind == Kind.PROBABILITY:
            x = x.sigmoid() if spec.channels == 1 else x.softmax(1)
        responses[spec.name] = x.half()
    tiles = torch.randint(0, 256, (num_tiles, 3, TILE_PX, TILE_PX), generator=generator, dtype=torch.uint8)
    return Batch(tiles=tiles, positions=torch.arange(num_tiles), responses=responses)


def test_every_method_has_a_config_with_defaults_and_fulfils_the_contract():
    for name, (config_class, method_class) in METHODS.items():
        assert issubclass(method_class, Method)
        assert read_options(name, {}) == config_class()


def test_settings_of_a_recipe_become_the_config():
    options = {"responses": ["np", "hv"], "weights": {"hv_gradient": 0.5}, "temperature": 2, "augment": {"contrast": 0.3}}
    assert read_options("rckd", options) == RCKDConfig(
        responses=("np", "hv"), weights={"hv_gradient": 0.5}, temperature=2, augment=ColourConfig(contrast=0.3)
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rkcd", {}, "no method 'rkcd' here; there is: rckd, resolution"),
        (
            "rckd",
            {"temprature": 2},
            "no setting 'temprature'. Did you mean temperature.*Settings are: responses, weights",
        ),
        ("rckd", {"augment": {"hue": 0.1}}, "no setting 'augment.hue'"),
        ("rckd", {"augment": 0.1}, "augment"),
        ("rckd", {"temperature": "warm"}, "temperature.*\n.*float.*warm"),
        ("rckd", {"seed": 1.5}, "seed.*\n.*int.*1.5"),
        ("rckd", {"flips_and_rotations": 1}, "flips_and_rotations.*\n.*bool.*1"),
    ],
)
def test_a_mistake_is_named_with_what_would_do(name, options, message):
    with pytest.raises(ConfigError, match=message):
        read_options(name, options)


def test_what_the_pool_has_to_give_is_known_without_a_model():
    wanted = wanted_responses("rckd", {}, TEACHER)
    assert [spec.name for spec in wanted] == ["np", "hv", "tp", "features"]
    with pytest.raises(TeacherError, match="rckd needs the response factors"):
        wanted_responses("rckd", {"responses": ["factors"]}, TEACHER)


@pytest.mark.parametrize("downsample", [1, 2])
def test_the_real_student_learns_a_fixed_batch(downsample):
    torch.manual_seed(0)
    config = StudentConfig(backbone="csat_nano", downsample=downsample)
    method = build_method("rckd", {"flips_and_rotations": False}, config, TEACHER, tile_px=TILE_PX)
    assert isinstance(method, RCKD) and method.downsample == downsample
    batch = make_batch()
    before = method(batch)
    assert set(before) == {"np_bce", "np_dice", "hv_mse", "hv_gradient", "tp_kl", "features_cosine"} == set(method.weights)
    optimiser = torch.optim.AdamW(method.part("student").parameters(), lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        method.total(method(batch)).mean().backward()
        optimiser.step()
    assert method.total(method(batch)).mean() < method.total(before).mean()


def test_every_parameter_of_the_real_student_gets_a_gradient():
    # DDP waits for each of them.
    method = build_method("rckd", {}, NANO, TEACHER, tile_px=TILE_PX)
    method.total(method(make_batch())).sum().backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_settings_that_do_not_fit_the_tile_are_refused_before_training():
    with pytest.raises(ConfigError, match="multiple of .* downsample 3.*not 64 px"):
        build_method("rckd", {}, StudentConfig(backbone="csat_nano", downsample=3), TEACHER, tile_px=TILE_PX)


def test_options_whose_default_has_changed_are_spelled_out():
    """With what it was and what it is, under what was given; other methods have none."""
    assert spell_out({"name": "attention"}) == {"name": "attention", "options": {"alpha_kd": 0.0}}
    before = spell_out({"name": "coco", "options": {"lambda_s": 3.0, "cells": 4}}, as_before=True)
    assert before["options"] == {"lambda_s": 3.0, "lambda_adv": 0.001, "cells": 4}
    assert spell_out({"name": "supervised", "options": {}}) == {"name": "supervised", "options": {}}
    for name, changed in CHANGED_DEFAULTS.items():
        config = (METHODS | LABELLED_METHODS)[name][0]()
        assert {option: getattr(config, option) for option in changed} == {k: v[1] for k, v in changed.items()}, name
