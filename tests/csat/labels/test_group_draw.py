"""Groups are drawn whole, every class among them, near the share that was asked for, by their names and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.labels.group_draw import GroupDraw
from tests.support.labelled_toy import make_samples

# Group → labels of its samples: one to five of one class, or of several.
GROUPS = st.dictionaries(
    st.text("abcdefgh0123", min_size=1, max_size=4),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    min_size=1,
    max_size=12,
)


def draw(samples, fraction, *, seed=0, what="test", num_later=0):
    return GroupDraw(samples, seed, what, fractions=[fraction], num_later=num_later).draw(fraction)


def labels_of(samples) -> Counter:
    return Counter(sample.label for sample in samples)


def groups_of(samples) -> set[str]:
    return {sample.group for sample in samples}


@given(groups=GROUPS, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 3), num_later=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_a_draw_cuts_no_group_and_loses_nothing(groups, fraction, seed, num_later):
    samples = make_samples(groups)
    drawn, rest = draw(samples, fraction, seed=seed, num_later=num_later)
    assert not groups_of(drawn) & groups_of(rest)
    assert sorted(drawn + rest, key=lambda sample: sample.key) == sorted(samples, key=lambda sample: sample.key)
    assert [sample for sample in samples if sample in drawn] == drawn, "samples keep their order"


@given(groups=GROUPS, fraction=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_without_later_parts_every_class_is_drawn(groups, fraction):
    samples = make_samples(groups)
    assert labels_of(draw(samples, fraction)[0]).keys() == labels_of(samples).keys()


@given(groups=GROUPS, seed=st.integers(0, 3), fractions=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)))
@settings(max_examples=20, deadline=None)
def test_a_smaller_share_is_part_of_a_larger(groups, seed, fractions):
    drawer = GroupDraw(make_samples(groups), seed, "labels", fractions=(0.1, 0.5))
    small, large = (groups_of(drawer.draw(fraction)[0]) for fraction in sorted(fractions))
    assert small <= large


def test_of_equal_groups_the_share_is_exact_in_every_class():
    samples = make_samples({f"{label}{index}": [label] * 2 for label in range(3) for index in range(20)})
    drawn, rest = draw(samples, 0.25, num_later=2)
    assert labels_of(drawn) == {0: 10, 1: 10, 2: 10}
    assert labels_of(rest) == {0: 30, 1: 30, 2: 30}


def test_a_rare_class_is_in_both_parts():
    samples = make_samples({**{f"common{index}": [0] for index in range(40)}, "rare1": [1], "rare2": [1]})
    for seed in range(5):
        drawn, rest = draw(samples, 0.1, seed=seed, num_later=1)
        assert labels_of(drawn)[1] == labels_of(rest)[1] == 1


def test_the_only_group_of_a_class_is_left_for_later_parts_but_kept_among_labels():
    samples = make_samples({**{f"common{index}": [0] for index in range(10)}, "rare": [1, 1]})
    for seed in range(5):
        assert labels_of(draw(samples, 0.3, seed=seed, num_later=1)[0])[1] == 0
        assert labels_of(draw(samples, 0.1, seed=seed)[0])[1] == 2


def test_a_class_that_is_nowhere_the_majority_is_drawn_and_left_all_the_same():
    samples = make_samples({f"patient{index}": [0, 0, 0, 1] if index % 3 == 0 else [0] * 4 for index in range(12)})
    for seed in range(5):
        drawn, rest = draw(samples, 0.25, seed=seed, num_later=1)
        assert labels_of(drawn)[1] >= 1
        assert labels_of(rest)[1] >= 1


def test_few_groups_of_unequal_size_come_near_the_share():
    sizes = [40, 23, 18, 16, 16, 16, 12, 9, 4, 4, 3, 3, 2, 1, 1, 1]
    samples = make_samples({f"patient {index}": [None] * size for index, size in enumerate(sizes)})
    for seed in range(10):
        drawn, _ = draw(samples, 0.2, seed=seed, num_later=2)
        assert 0.15 < len(drawn) / len(samples) < 0.25
        assert len(groups_of(drawn)) >= 2, "one patient is no test"


def test_the_draw_follows_from_names_seed_and_purpose():
    samples = make_samples({f"patient {index}": [index % 2] * (1 + index % 3) for index in range(30)})
    drawn = groups_of(draw(samples, 0.3)[0])
    shuffled = [samples[index] for index in np.random.default_rng(0).permutation(len(samples))]
    assert groups_of(draw(shuffled, 0.3)[0]) == drawn
    assert groups_of(draw(samples, 0.3, seed=1)[0]) != drawn
    assert groups_of(draw(samples, 0.3, what="val")[0]) != drawn


def test_global_generators_are_neither_used_nor_moved():
    samples = make_samples({f"patient {index}": [0] for index in range(30)})
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    one = draw(samples, 0.3)[0]
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    assert draw(samples, 0.3)[0] == one


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_single_group_stays_where_more_parts_follow(fraction):
    samples = make_samples({"only": [0, 0, 0]})
    drawn, rest = draw(samples, fraction, num_later=1)
    assert len(drawn) in (0, 3)
    assert len(drawn) == 0 or fraction > 0.5
    assert drawn + rest == samples
