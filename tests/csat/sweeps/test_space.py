import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from csat.errors import ConfigError
from csat.sweeps.space import corners, read_space


def test_every_kind_becomes_what_optuna_calls_it():
    space = read_space(
        {
            "train.optim.lr": {"loguniform": [1.0e-4, "1e-2"]},  # YAML reads 1e-2 as a word
            "model.drop_path": {"uniform": [0, 0.3]},
            "train.batch_size": {"lograndint": [8, 64]},
            "train.accumulate": {"randint": [1, 4]},
            "data.sampling": {"choice": ["natural", "balanced"]},
        }
    )
    assert [dimension.distribution() for dimension in space] == [
        FloatDistribution(1e-4, 1e-2, log=True),
        FloatDistribution(0, 0.3),
        IntDistribution(8, 64, log=True),
        IntDistribution(1, 4),
        CategoricalDistribution(["natural", "balanced"]),
    ]


def test_corners_have_every_end_and_choice():
    space = read_space({"train.optim.lr": {"uniform": [1, 2]}, "data.sampling": {"choice": ["a", "b", "c"]}})
    points = corners(space)
    assert points[0] == {"train.optim.lr": 1.0, "data.sampling": "a"}
    assert {point["train.optim.lr"] for point in points} == {1.0, 2.0}
    assert {point["data.sampling"] for point in points} == {"a", "b", "c"}
    assert corners(()) == [{}]


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("train.optim.lr", {"logunifrom": [1, 2]}, ["no 'logunifrom'", "Did you mean loguniform"]),
        ("train.optim.lr", 0.1, ["expected one of", "{loguniform: [1.0e-4, 1.0e-2]}", "0.1"]),
        ("train.optim.lr", {"uniform": [1, 2], "choice": [1]}, ["expected one of"]),
        ("train.optim.lr", {"uniform": 3}, ["takes a list", "3"]),
        ("train.optim.lr", {"uniform": [1, 2, 3]}, ["takes two numbers"]),
        ("train.optim.lr", {"uniform": ["low", 2]}, ["takes two numbers", "low"]),
        ("train.optim.lr", {"uniform": [2, 1]}, ["from a lower to a higher", "2.0 to 1.0"]),
        ("train.optim.lr", {"loguniform": [0, 1]}, ["positive", "use uniform"]),
        ("train.batch_size", {"randint": [1.5, 3]}, ["two whole numbers"]),
        ("data.sampling", {"choice": []}, ["different values"]),
        ("data.sampling", {"choice": ["natural", "natural"]}, ["different values"]),
        ("train.optim.betas", {"choice": [[0.9, 0.99]]}, ["a number, a word", "[0.9, 0.99]"]),
        ("data.tile_px", {"choice": [64, 128]}, ["cannot be searched"]),
        ("run_folder", {"choice": ["a", "b"]}, ["cannot be searched"]),
        ("train.seed", {"randint": [0, 3]}, ["cannot be searched", "train.seed"]),
        ("model.name", {"choice": ["csat", "csat_nano"]}, ["cannot be searched", "a start"]),
    ],
)
def test_what_cannot_be_searched_is_refused(name, spec, words):
    with pytest.raises(ConfigError) as caught:
        read_space({name: spec})
    for word in [f"search.{name}", *words]:
        assert word in str(caught.value)
