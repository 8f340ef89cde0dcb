"""Heads and targets of a task agree with each other, and targets are what was labelled."""

import numpy as np
import pytest

from csat.labels.datasets.contract import Decoded
from csat.labels.targets import make_targets
from csat.responses import Kind, Symmetry
from csat.tasks import IGNORE, Task, heads_of, targets_of
from tests.support.labelled_toy import CLASSES, draw_nuclei, make_info


@pytest.mark.parametrize(
    ("task", "classes", "heads"),
    [
        (Task.CLASSIFICATION, ("a", "b", "c"), [("label", Kind.LOGITS, 3)]),
        (Task.SEGMENTATION, ("background", "a"), [("mask", Kind.LOGITS, 2)]),
        (Task.NUCLEI, (), [("np", Kind.PROBABILITY, 1), ("hv", Kind.REGRESSION, 2)]),
        (Task.NUCLEI, ("a", "b"), [("np", Kind.PROBABILITY, 1), ("hv", Kind.REGRESSION, 2), ("tp", Kind.LOGITS, 3)]),
    ],
)
def test_heads_of_each_task(task, classes, heads):
    info = make_info(task, classes)
    specs = heads_of(info, crop_px=4)
    assert [(spec.name, spec.kind, spec.channels) for spec in specs] == heads
    assert [spec.name for spec in targets_of(info)] == [spec.name for spec in specs]
    assert all(spec.crop_px == (4 if spec.is_dense else 0) for spec in specs)
    assert all((spec.symmetry == Symmetry.HV) == (spec.name == "hv") for spec in specs)
    if task == Task.NUCLEI and classes:
        assert specs[2].channel_names == ("background", "a", "b")


@pytest.mark.parametrize("task", Task)
def test_targets_have_the_shapes_and_types_that_are_promised(task):
    info, decoded = make_info(task), draw_nuclei(np.random.default_rng(0), 32)
    targets = make_targets(info, decoded, 1)
    assert targets.keys() == {spec.name for spec in targets_of(info)}
    for spec in targets_of(info):
        target = np.asarray(targets[spec.name])
        assert target.shape == spec.shape(32)
        assert target.dtype == spec.dtype


def test_targets_of_one_nucleus_by_hand():
    instances = np.zeros((5, 5), np.int32)
    instances[1:4, 1:4] = 9
    decoded = Decoded(image=np.zeros((5, 5, 3), np.uint8), instances=instances, types=(instances > 0).astype(np.uint8) * 2)
    targets = make_targets(make_info(Task.NUCLEI), decoded, None)
    assert targets["np"].tolist() == (instances > 0).astype(int).tolist()
    assert targets["hv"][0, 2].tolist() == [0, -1, 0, 1, 0]
    assert targets["hv"][1, :, 2].tolist() == [0, -1, 0, 1, 0]
    assert targets["tp"][2].tolist() == [0, 2, 2, 2, 0]


def test_nuclei_of_unknown_type_do_not_count_for_types():
    instances = np.array([[0, 1], [2, 0]], np.int32)
    targets = make_targets(make_info(Task.NUCLEI), Decoded(image=np.zeros((2, 2, 3), np.uint8), instances=instances), None)
    assert targets["tp"].tolist() == [[0, IGNORE], [IGNORE, 0]]
    assert targets["np"].tolist() == [[0, 1], [1, 0]]


def test_a_label_is_the_target_of_a_classification():
    assert make_targets(make_info(), Decoded(image=np.zeros((2, 2, 3), np.uint8)), 1) == {"label": 1}
    assert len(CLASSES[Task.CLASSIFICATION]) == heads_of(make_info())[0].channels
