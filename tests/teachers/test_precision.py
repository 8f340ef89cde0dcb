"""How much bfloat16 changes of a teacher's answers: by hand, and of networks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csat.responses import Kind, ResponseSpec, Symmetry
from teachers.precision import BOUNDS, as_record, deviations
from teachers.registry import has_precision, load_teacher

TILES = np.random.default_rng(3).integers(0, 256, (4, 64, 64, 3), np.uint8)


def spec(kind: Kind, *, channels: int = 2, stride_px: int | None = None) -> ResponseSpec:
    return ResponseSpec(name="r", kind=kind, channels=channels, stride_px=stride_px, symmetry=Symmetry.NONE)


def deviation(kind: Kind, exact, fast):
    exact, fast = np.array(exact, np.float16), np.array(fast, np.float16)
    (found,) = deviations([({"r": exact}, {"r": fast})], [spec(kind, channels=exact.shape[1])])
    return found


@pytest.mark.parametrize(
    ("kind", "exact", "fast", "expected"),
    [
        (Kind.PROBABILITY, [[0.5, 0.5]], [[0.75, 0.25]], 0.25),
        (Kind.FEATURES, [[3.0, 4.0]], [[4.0, 3.0]], 1 - 24 / 25),
        (Kind.FEATURES, [[3.0, 4.0]], [[6.0, 8.0]], 0.0),  # by direction, not by length
        (Kind.REGRESSION, [[3.0, 4.0]], [[3.0, 1.0]], 3 / 5),
        (Kind.ATTENTION, [[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        (Kind.LOGITS, [[0.0, 0.0]], [[0.0, np.log(3)]], 0.25),  # (1/2, 1/2) against (1/4, 3/4)
        (Kind.LOGITS, [[1.0, 2.0]], [[4.0, 5.0]], 0.0),  # a shift says nothing
    ],
)
def test_by_hand(kind, exact, fast, expected):
    found = deviation(kind, exact, fast)
    assert found.worst == pytest.approx(expected, abs=1e-3)
    assert found.is_within == (expected <= BOUNDS[kind][1])


def test_the_worst_tile_counts_over_all_batches():
    batches = [({"r": np.array([[1.0, 0.0], [1.0, 0.0]])}, {"r": np.array([[1.0, 0.0], [0.0, 1.0]])})]
    batches.append(({"r": np.array([[0.0, 1.0], [0.0, 2.0]])}, {"r": np.array([[0.0, 1.0], [0.0, 2.0]])}))
    (found,) = deviations(batches, [spec(Kind.FEATURES)])
    assert (found.mean, found.worst, found.is_within) == (0.25, 1.0, False)
    assert as_record([found])[0] == {
        "response": "r",
        "measure": "1 - cosine",
        "mean": 0.25,
        "worst": 1.0,
        "bound": 0.01,
        "is_within": False,
    }


def test_what_is_not_a_number_is_not_within():
    assert not deviation(Kind.REGRESSION, [[1.0, 2.0]], [[1.0, np.nan]]).is_within


@pytest.mark.parametrize("kind", Kind)
@given(st.lists(st.floats(0, 1, width=16), min_size=8, max_size=8))
def test_equal_answers_differ_by_nothing(kind, values):
    exact = np.array(values, np.float16).reshape(1, 2, 2, 2) + np.float16(0.01)
    (found,) = deviations([({"r": exact}, {"r": exact})], [spec(kind, stride_px=1)])
    assert abs(found.worst) < 1e-9


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("timm", {"model": "resnet18", "random_weights": True, "outputs": ["features", "tokens"], "num_classes": 0}),
        ("timm", {"model": "vit_tiny_patch16_224", "random_weights": True, "outputs": ["features", "tokens", "logits"]}),
        ("hovernet", {"random_weights": True, "width": 0.125}),
    ],
)
def test_networks_stay_within_their_bounds_and_keep_their_precision(teacher, options):
    tiles = TILES if teacher == "timm" else np.repeat(np.repeat(TILES, 4, axis=1), 4, axis=2)
    loaded = load_teacher(teacher, None, {**options, "precision": "float32"})
    exact, fast = loaded.respond(tiles), loaded.in_bfloat16().respond(tiles)
    assert loaded.precision == "float32"
    assert any(not np.array_equal(exact[name], fast[name]) for name in exact)
    assert all(each.is_within for each in deviations([(exact, fast)], loaded.spec.responses))
    again = loaded.respond(tiles)
    assert all(np.array_equal(exact[name], again[name]) for name in exact)
    by_itself = load_teacher(teacher, None, {**options, "precision": "bfloat16"}).respond(tiles)
    assert all(np.array_equal(fast[name], by_itself[name]) for name in fast)


def test_a_vision_transformer_is_in_bfloat16_as_a_whole():
    options = {"model": "vit_tiny_patch16_224", "random_weights": True}
    nets = [load_teacher("timm", None, {**options, "precision": name}).net for name in ("float32", "bfloat16")]
    assert [{weight.dtype for weight in net.parameters()} for net in nets] == [{torch.float32}, {torch.bfloat16}]


def test_who_has_a_choice():
    assert {name: has_precision(name) for name in ("stain", "hovernet", "timm", "torchscript", "run")} == {
        "stain": False,
        "hovernet": True,
        "timm": True,
        "torchscript": False,
        "run": True,
    }


def test_how_it_computes_says_not_what_it_is():
    """Random weights are known by their options: in either precision, and by an earlier version, they are the same."""
    options = {"random_weights": True, "width": 0.125}
    each = [load_teacher("hovernet", None, {**options, "precision": name}).spec for name in ("best", "float32", "bfloat16")]
    assert each[0] == each[1] == each[2]
