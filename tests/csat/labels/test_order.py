"""Orders of labelled samples: natural, balanced and oversampled, the same whoever asks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.labels.order import SampleOrder, visits_an_epoch
from tests.support.labelled_toy import plan_of


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_natural_order_has_every_sample_once(labels, seed):
    order = SampleOrder(plan_of(len(labels), 3, seed), sampling="natural", labels=labels)
    for epoch in range(3):
        assert sorted(order.epoch(epoch)) == list(range(len(labels)))


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_balanced_order_deals_positions_evenly_to_classes_and_to_their_samples(labels, seed):
    order = SampleOrder(plan_of(len(labels), 3, seed), sampling="balanced", labels=labels)
    for epoch in range(3):
        drawn = order.epoch(epoch)
        assert len(drawn) == len(labels)
        of_class = {label: sum(labels[index] == label for index in drawn) for label in set(labels)}
        assert max(of_class.values()) - min(of_class.values()) <= 1, "no class is missing, none is ahead"
        for label in of_class:
            times = [int((drawn == index).sum()) for index in range(len(labels)) if labels[index] == label]
            assert max(times) - min(times) <= 1


def test_oversampling_repeats_rare_classes_by_the_rounded_ratio():
    labels = [0] * 10 + [1] * 4 + [2] * 3 + [0]  # 11 / 4 = 2.75 and 11 / 3 = 3.67
    visits = visits_an_epoch(labels, "oversampled")
    assert visits.tolist() == [1] * 10 + [3] * 4 + [4] * 3 + [1]
    order = SampleOrder(plan_of(int(visits.sum())), sampling="oversampled", labels=labels)
    for epoch in range(2):
        assert np.bincount(order.epoch(epoch)).tolist() == visits.tolist()
    assert visits_an_epoch(labels, "natural").tolist() == visits_an_epoch(labels, "balanced").tolist() == [1] * 18


def test_orders_differ_by_epoch_and_seed_and_repeat():
    labels = [0] * 30 + [1] * 3
    for sampling in ("natural", "balanced"):
        orders = {
            (seed, epoch): tuple(SampleOrder(plan_of(33, seed=seed), sampling=sampling, labels=labels).epoch(epoch))
            for seed in (0, 1)
            for epoch in (0, 1)
        }
        assert len(set(orders.values())) == 4
        again = SampleOrder(plan_of(33, seed=1), sampling=sampling, labels=labels)
        again.epoch(0)
        assert tuple(again.epoch(1)) == orders[1, 1]


def test_leftover_positions_go_to_different_classes():
    order = SampleOrder(plan_of(4, 40), sampling="balanced", labels=[0, 1, 2, 2])
    ahead = {np.bincount([[0, 1, 2, 2][index] for index in order.epoch(epoch)], minlength=3).argmax() for epoch in range(40)}
    assert ahead == {0, 1, 2}
