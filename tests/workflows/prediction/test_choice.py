"""Which files a model can give, which are written by themselves, and what is refused."""

import pytest

from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec
from csat.tasks import Task
from workflows.prediction.choice import chosen_files, needed_answers, possible_files
from workflows.prediction.description import Description

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2)
LABEL = ResponseSpec(name="label", kind=Kind.PROBABILITY, channels=3, stride_px=None)
MASK = ResponseSpec(name="mask", kind=Kind.PROBABILITY, channels=3)
VECTOR = ResponseSpec(name="features", kind=Kind.FEATURES, channels=8, stride_px=None)


def model(*specs, task):
    about = {"name": "mine", "sha256": "0" * 64, "licence": "", "source": ""}
    return Description(specs=specs, tile_px=64, mpp=0.5, task=task, classes=(), overlap_px=0, about=about)


NUCLEI, CLASSES = model(NP, HV, task=Task.NUCLEI), model(LABEL, VECTOR, task=Task.CLASSIFICATION)
AREAS, ENCODER = model(MASK, task=Task.SEGMENTATION), model(VECTOR, task=None)


@pytest.mark.parametrize(
    ("described", "can", "by_itself"),
    [
        (
            NUCLEI,
            "nuclei.geojson.gz nuclei.parquet cells.geojson.gz nuclei-centroids.geojson.gz heatmap.ome.tif heatmap.png",
            "nuclei.geojson.gz nuclei.parquet",
        ),
        (
            CLASSES,
            "tiles.geojson.gz tiles.parquet heatmap.ome.tif heatmap.png embeddings.parquet",
            "tiles.geojson.gz tiles.parquet heatmap.ome.tif heatmap.png",
        ),
        (AREAS, "heatmap.ome.tif heatmap.png mask.ome.tif", "heatmap.ome.tif heatmap.png mask.ome.tif"),
        (ENCODER, "embeddings.parquet", "embeddings.parquet"),
    ],
    ids=["nuclei", "classes", "areas", "encoder"],
)
def test_what_a_model_can_give(described, can, by_itself):
    assert possible_files(described) == can.split()
    assert set(chosen_files([], described)) == set(by_itself.split())


def test_a_name_without_its_ending_means_all_that_it_can():
    assert chosen_files(["heatmap"], NUCLEI) == ("heatmap.ome.tif", "heatmap.png")
    assert chosen_files(["embeddings", "tiles.parquet"], CLASSES) == ("tiles.parquet", "embeddings.parquet")
    assert chosen_files(["nuclei.geojson.gz"], NUCLEI) == ("nuclei.geojson.gz", "nuclei.parquet"), "made of the table"


def test_only_what_files_are_made_of_is_answered():
    assert chosen_files(["cells"], NUCLEI) == ("nuclei.parquet", "cells.geojson.gz")
    assert chosen_files(["nuclei-centroids"], NUCLEI) == ("nuclei.parquet", "nuclei-centroids.geojson.gz")
    assert needed_answers(["heatmap.png"], NUCLEI) == ("np",)
    assert needed_answers(["nuclei.parquet"], NUCLEI) == ("np", "hv")
    assert needed_answers(["embeddings.parquet"], CLASSES) == ("features",)


@pytest.mark.parametrize(
    ("write", "described", "words"),
    [
        (["mask"], NUCLEI, "write names 'mask', and mine answers np, hv: it can give nuclei.geojson.gz"),
        (["nuclie"], NUCLEI, "'nuclie', which is no file that is written; mine can give: nuclei.geojson.gz"),
        ([], model(HV, task=None), "mine answers hv: there is no file to be made of it"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(write, described, words):
    with pytest.raises(ConfigError, match=words):
        chosen_files(write, described)
