"""How many actors hold the model from the beginning, and how much of the stream one of them gets at once."""

from dataclasses import replace

import pytest

from workflows.prediction.config import AnswersConfig, NetworkConfig, OutlineConfig, PredictConfig
from workflows.prediction.stream import first_actors, most_actors, rows_at_once


@pytest.mark.parametrize(
    ("network", "has", "expected"),
    [
        ({}, {"CPU": 2.0}, 2),  # 0.25 to read, 0.25 for outlines, 2 x 0.25 for files
        ({}, {"CPU": 1.9}, 1),
        ({}, {"CPU": 64.0}, 64),
        ({"max_actors": 2}, {"CPU": 64.0}, 2),
        ({"cpus_per_actor": 4.0}, {"CPU": 64.0}, 15),
        ({"gpus_per_actor": 0.5}, {"CPU": 64.0, "GPU": 3.0}, 6),
        ({"max_actors": 8}, {"CPU": 64.0}, 8),
        ({"max_actors": 8, "gpus_per_actor": 1.0}, {"CPU": 64.0, "GPU": 3.0}, 3),
        ({"max_actors": 8, "gpus_per_actor": 0.5, "cpus_per_actor": 0.0}, {"CPU": 0.5, "GPU": 3.0}, 6),
        ({"cpus_per_actor": 0.0}, {}, 1),
        ({"min_actors": 2, "max_actors": 4}, {"CPU": 1.0}, 2),  # of a cluster that grows
    ],
)
def test_as_many_as_there_is_room_for(network, has, expected):
    assert first_actors(config_of(**network), has) == expected


@pytest.mark.parametrize(
    ("network", "outlines", "can_have", "expected"),
    [
        ({}, {}, {"CPU": 2.0}, (2, 2)),
        ({}, {"max_actors": 4}, {"CPU": 16.0}, (16, 4)),
        ({"min_actors": 3}, {"min_actors": 2}, {}, (3, 2)),
        ({"cpus_per_actor": 3.0}, {}, {"CPU": 16.0}, (5, 16)),
        ({"gpus_per_actor": 0.25}, {}, {"CPU": 16.0, "GPU": 2.0}, (8, 16)),
    ],
)
def test_left_open_there_are_as_many_as_cores_or_places_on_gpus(network, outlines, can_have, expected):
    config = replace(config_of(**network), outlines=OutlineConfig(**outlines))
    assert most_actors(config, can_have) == expected


def config_of(**network):
    return PredictConfig(model=AnswersConfig(name="stain"), slides=["a.svs"], output="out", network=NetworkConfig(**network))


@pytest.mark.parametrize(("batch_size", "tile_px", "expected"), [(32, 256, 32), (8, 256, 8), (512, 256, 170), (32, 8192, 1)])
def test_a_reader_lets_go_of_a_batch_and_of_no_more_than_a_block_may_hold(batch_size, tile_px, expected):
    assert rows_at_once(config_of(batch_size=batch_size), 3 * tile_px**2) == expected
