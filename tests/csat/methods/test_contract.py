from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from csat.errors import ConfigError, TeacherError
from csat.methods.contract import Method, Setting, Source, check_weights
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from tests.support.labelled_toy import make_info

SPEC = ResponseSpec(name="map", kind=Kind.FEATURES, channels=2, stride_px=2)
TEACHER = TeacherSpec(name="fake", responses=(SPEC,), mpp=None)
SETTING = Setting(tile_px=4, teacher=TEACHER, seed=5)


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    """Settings of the least method."""

    weights: dict[str, float] = field(default_factory=dict)
    seed: int | None = None


class Constant(Method):
    """The least that a method has to say."""

    Config = ConstantConfig

    def __init__(self, config: ConstantConfig, model: nn.Module, setting: Setting):
        super().__init__(config, model, setting)
        self.value = nn.Parameter(torch.ones(1))
        self.weights = self.weigh(("a", "b"))

    @classmethod
    def wanted(cls, config: ConstantConfig, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        return teacher.responses

    def part(self, turn: str) -> nn.Module:
        return {"student": self}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        return {"a": self.value.expand(len(batch)), "b": torch.arange(float(len(batch)))}


def make(setting: Setting = SETTING, **settings) -> Constant:
    return Constant(ConstantConfig(**settings), nn.Identity(), setting)


def make_batch(num: int = 3, size: tuple[int, int] = (4, 4), **responses: Tensor) -> Batch:
    return Batch(tiles=torch.zeros(num, 3, *size, dtype=torch.uint8), positions=torch.arange(num), responses=responses)


def test_the_total_weighs_each_tile_by_name():
    method, batch = make(weights={"a": 2.0, "b": 0.5}), make_batch()
    assert method.total(method(batch)).tolist() == [2.0, 2.5, 3.0]


def test_a_term_without_a_weight_is_our_bug_and_shows():
    with pytest.raises(KeyError, match="b"):
        method = make()
        method.weights = {"a": 1.0}
        method.total(method(make_batch(1)))


def test_a_method_that_leaves_something_out_cannot_be_made():
    class Incomplete(Method):
        pass

    with pytest.raises(TypeError, match="forward"):
        Incomplete(None, nn.Identity(), SETTING)


def test_weights_are_those_of_the_settings_else_one():
    assert make(weights={"b": 0}).weights == {"a": 1.0, "b": 0.0}
    with pytest.raises(ConfigError, match="no term of this run: c; its terms are: a, b"):
        make(weights={"c": 1.0})
    with pytest.raises(ConfigError, match="every weight is 0: nothing would be learned"):
        make(weights={"a": 0, "b": 0.0})
    for value in (-1, float("nan"), float("inf"), "much"):
        with pytest.raises(ConfigError, match="weights.a must be a number of 0 or more"):
            check_weights({"a": value})


def test_what_it_learns_from_must_be_there():
    class Both(Constant):
        learns_from = Source.RESPONSES | Source.LABELS

    method = Both(ConstantConfig(), nn.Identity(), Setting(tile_px=4, teacher=TEACHER, data=make_info()))
    assert method.responses == (SPEC,) and [spec.name for spec in method.targets] == ["label"]
    with pytest.raises(ConfigError, match="Both learns from responses, and this run has none"):
        Both(ConstantConfig(), nn.Identity(), Setting(tile_px=4, data=make_info()))
    with pytest.raises(ConfigError, match="Both learns from labels, and this run has none"):
        Both(ConstantConfig(), nn.Identity(), SETTING)
    assert make().targets == () and make().first_stage() is None


def test_what_is_random_follows_the_run_unless_the_settings_say_so():
    assert make().seed == 5 and make(seed=0).seed == 0


def test_responses_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="'map' covers 5 px"):
        make(Setting(tile_px=5, teacher=TEACHER))
    method, right = make(), torch.zeros(3, 2, 2, 2)
    assert method.responses_in(make_batch(map=right, other=right)) == {"map": right}
    with pytest.raises(TeacherError, match=r"'map' of a 4 px tile must be \[3, 2, 2, 2\], got nothing"):
        method.responses_in(make_batch())
    with pytest.raises(TeacherError, match=r"'map' of a 4 x 8 px tile must be \[3, 2, 2, 4\], got \[3, 2, 2, 2\]"):
        method.responses_in(make_batch(size=(4, 8), map=right))
