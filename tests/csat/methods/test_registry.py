"""From a recipe's settings to a method over the real student."""

import pytest
import torch

from csat.errors import ConfigError, TeacherError
from csat.methods.contract import Method, Setting
from csat.methods.rckd import RCKD, RCKDConfig
from csat.methods.registry import (
    METHODS,
    build_method,
    build_student,
    find_method,
    read_options,
    spell_out,
    wanted_responses,
)
from csat.model.student import StudentConfig
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.views.colour_config import ColourConfig
from tests.support.labelled_toy import make_info

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


def make_rckd(options: dict, *, downsample: int = 1) -> RCKD:
    torch.manual_seed(0)
    student = build_student("rckd", options, StudentConfig(backbone="csat_nano", downsample=downsample), TEACHER)
    return build_method("rckd", options, student, Setting(tile_px=TILE_PX, teacher=TEACHER, seed=7))


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
    for name in METHODS:
        assert issubclass(find_method(name), Method) and find_method(name).learns_from
        assert read_options(name, {}) == find_method(name).Config()


def test_settings_of_a_recipe_become_the_config():
    options = {"responses": ["np", "hv"], "weights": {"hv_gradient": 0.5}, "temperature": 2, "augment": {"contrast": 0.3}}
    assert read_options("rckd", options) == RCKDConfig(
        responses=("np", "hv"), weights={"hv_gradient": 0.5}, temperature=2, augment=ColourConfig(contrast=0.3)
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rkcd", {}, "no method 'rkcd'; there is: rckd, resolution, supervised, coco, attention"),
        (
            "rckd",
            {"temprature": 2},
            "no setting 'temprature'. Did you mean temperature.*Settings are: responses, weights",
        ),
        ("rckd", {"augment": {"hue": 0.1}}, "no setting 'augment.hue'"),
        ("rckd", {"augment": 0.1}, "augment"),
        ("rckd", {"temperature": "warm"}, "temperature.*\n.*float.*warm"),
        ("rckd", {"seed": 1.5}, "(?s)seed.*int.*1.5"),
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
    method = make_rckd({"flips_and_rotations": False}, downsample=downsample)
    assert isinstance(method, RCKD) and method.student.downsample == downsample
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
    method = make_rckd({})
    method.total(method(make_batch())).sum().backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_settings_that_do_not_fit_the_tile_are_refused_before_training():
    with pytest.raises(ConfigError, match="multiple of .* downsample 3.*not 64 px"):
        make_rckd({}, downsample=3)


def test_what_is_random_follows_the_runs_seed_or_the_methods_own():
    assert make_rckd({}).seed == 7 and make_rckd({"seed": 0}).seed == 0


@pytest.mark.parametrize(
    ("name", "teacher", "has_labels", "message"),
    [
        (
            "supervised",
            TEACHER,
            False,
            r"no method 'supervised' here \(supervised is a method of finetune.py\).* rckd, res",
        ),
        ("rckd", TEACHER, True, r"no method 'rckd' here \(rckd is a method of pretrain.py\); there is: supervised, coco, att"),
        ("rkcd", TEACHER, False, "no method 'rkcd' here; there is: rckd, resolution"),
        ("coco", None, True, "method 'coco' learns from a teacher too: name one with teacher.name"),
        ("supervised", TEACHER, True, "'supervised' has no use for a teacher: .* a method that has: coco, attention"),
    ],
)
def test_a_method_that_does_not_learn_from_what_there_is(name, teacher, has_labels, message):
    with pytest.raises(ConfigError, match=message):
        wanted_responses(name, {}, teacher, has_labels=has_labels)
    setting = Setting(tile_px=TILE_PX, teacher=teacher, data=make_info() if has_labels else None)
    with pytest.raises(ConfigError, match=message):
        build_method(name, {}, torch.nn.Identity(), setting)


def test_options_whose_default_has_changed_are_spelled_out():
    """With what it was and what it is, under what was given; other methods have none."""
    assert spell_out({"name": "attention"}) == {"name": "attention", "options": {"alpha_kd": 0.0}}
    before = spell_out({"name": "coco", "options": {"lambda_s": 3.0, "cells": 4}}, as_before=True)
    assert before["options"] == {"lambda_s": 3.0, "lambda_adv": 0.001, "cells": 4}
    assert spell_out({"name": "supervised", "options": {}}) == {"name": "supervised", "options": {}}
    assert spell_out({"name": "gone", "options": {"a": 1}}) == {"name": "gone", "options": {"a": 1}}
    for name in METHODS:
        config, changed = find_method(name).Config(), find_method(name).changed_defaults
        assert {option: getattr(config, option) for option in changed} == {k: v[1] for k, v in changed.items()}, name
