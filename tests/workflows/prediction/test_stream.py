"""How many actors hold the model from the beginning."""

import pytest

from workflows.prediction.config import AnswersConfig, NetworkConfig, PredictConfig
from workflows.prediction.stream import first_actors


@pytest.mark.parametrize(
    ("network", "has", "expected"),
    [
        ({}, {"CPU": 2.0}, 2),  # 0.25 to read, 0.25 for outlines, 2 x 0.25 for files
        ({}, {"CPU": 1.9}, 1),
        ({}, {"CPU": 64.0}, 2),
        ({"max_actors": 8}, {"CPU": 64.0}, 8),
        ({"max_actors": 8, "gpus_per_actor": 1.0}, {"CPU": 64.0, "GPU": 3.0}, 3),
        ({"max_actors": 8, "gpus_per_actor": 0.5, "cpus_per_actor": 0.0}, {"CPU": 0.5, "GPU": 3.0}, 6),
        ({"cpus_per_actor": 0.0}, {}, 2),
        ({"min_actors": 2, "max_actors": 4}, {"CPU": 1.0}, 2),  # of a cluster that grows
    ],
)
def test_as_many_as_there_is_room_for(network, has, expected):
    config = PredictConfig(model=AnswersConfig(name="stain"), slides=["a.svs"], output="out", network=NetworkConfig(**network))
    assert first_actors(config, has) == expected
