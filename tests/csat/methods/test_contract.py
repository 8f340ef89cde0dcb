import pytest
import torch
from torch import Tensor, nn

from csat.methods.contract import Method
from csat.responses import Batch, ResponseSpec, TeacherSpec


class Constant(Method):
    """The least that a method has to say."""

    responses: tuple[ResponseSpec, ...] = ()

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))
        self.weights = weights

    @classmethod
    def needs(cls, config: None, teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
        return ()

    def part(self, turn: str) -> nn.Module:
        return {"student": self}[turn]

    def forward(self, batch: Batch, turn: str = "student") -> dict[str, Tensor]:
        return {"a": self.value.expand(len(batch)), "b": torch.arange(float(len(batch)))}


def test_the_total_weighs_each_tile_by_name():
    method = Constant({"a": 2.0, "b": 0.5})
    batch = Batch(tiles=torch.zeros(3, 3, 4, 4, dtype=torch.uint8), positions=torch.arange(3))
    assert method.total(method(batch)).tolist() == [2.0, 2.5, 3.0]


def test_a_term_without_a_weight_is_our_bug_and_shows():
    with pytest.raises(KeyError, match="b"):
        method = Constant({"a": 1.0})
        method.total(method(Batch(tiles=torch.zeros(1, 3, 4, 4, dtype=torch.uint8), positions=torch.arange(1))))


def test_a_method_that_leaves_something_out_cannot_be_made():
    class Incomplete(Method):
        pass

    with pytest.raises(TypeError, match="forward"):
        Incomplete()
