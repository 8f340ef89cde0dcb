"""Positions become rows: the same in any process and batch, each once an epoch, whoever reads, whatever was done before."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.columns import OK, POSITION, QUARANTINED, READ_S, REASON, STATUS, TARGET_PREFIX, TEACHER_S, TILE
from csat.labels.augment import JointConfig, fit_tile
from csat.labels.datasets.contract import Decoded
from csat.labels.order import SampleOrder
from csat.labels.reader import LabelledReader, read_here
from csat.runs.plan import Intervals
from csat.tasks import Task, targets_of
from tests.support.labelled_toy import ListSource, draw_nuclei, make_info, make_samples, plan_of

STRONG = JointConfig(rotate_degrees=30.0, elastic_px=3.0, elastic_prob=0.5, noise=0.01)


def make_reader(
    task=Task.NUCLEI, *, size=7, epochs=2, broken=(), augment=STRONG, sampling="natural", seed=0, skip=0
) -> LabelledReader:
    decoded = [draw_nuclei(np.random.default_rng(index), (30, 40)) for index in range(skip + size)]
    samples = make_samples({f"p{index}": [index % 2] for index in range(size)})
    source = ListSource([None if index - skip in broken else one for index, one in enumerate(decoded)])
    order = SampleOrder(plan_of(size, epochs), sampling=sampling, labels=[sample.label for sample in samples])
    return LabelledReader(
        source, samples, make_info(task), order, augment=augment, tile_px=24, fit="resize", seed=seed, first_index=skip
    )


def read(reader, positions, batch_size):
    batches = [
        reader({POSITION: np.array(positions[start : start + batch_size])}) for start in range(0, len(positions), batch_size)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_rows_equal(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {READ_S}:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("task", Task)
def test_rows_do_not_depend_on_the_batch(task):
    reader, positions = make_reader(task, broken=(3,)), list(range(14))
    whole = read(reader, positions, 14)
    assert_rows_equal(read(reader, positions, 1), whole)
    assert_rows_equal(read(reader, positions, 4), whole)
    backwards = read(make_reader(task, broken=(3,)), positions[::-1], 3)
    assert_rows_equal({name: column[::-1] for name, column in backwards.items()}, whole)


def test_rows_have_all_columns_of_the_stream():
    rows = make_reader()({POSITION: np.arange(5)})
    assert rows[TILE].shape == (5, 24, 24, 3)
    assert rows[TILE].dtype == np.uint8
    for spec in targets_of(make_info(Task.NUCLEI)):
        assert rows[TARGET_PREFIX + spec.name].shape == (5, *spec.shape(24))
        assert rows[TARGET_PREFIX + spec.name].dtype == spec.dtype
    assert (rows[STATUS] == OK).all()
    assert (rows[READ_S] > 0).all()
    assert (rows[TEACHER_S] == 0).all()
    assert {"slide", "x_px", "y_px", REASON} <= rows.keys()


def test_a_row_is_the_sample_that_stands_there():
    reader = make_reader(Task.CLASSIFICATION, augment=None, skip=4)
    order = reader.order.epoch(1)
    rows = reader({POSITION: 7 + np.arange(7)})
    assert rows["slide"].tolist() == [f"p{index}-0" for index in order]
    assert rows[TARGET_PREFIX + "label"].tolist() == [index % 2 for index in order]
    for row, index in enumerate(order):
        tile = fit_tile(draw_nuclei(np.random.default_rng(4 + index), (30, 40)), tile_px=24, fit="resize")
        assert np.array_equal(rows[TILE][row], tile.image)


def test_a_sample_looks_different_in_every_epoch_and_with_every_seed():
    tiles = {}
    for seed in (0, 1):
        reader = make_reader(size=3, epochs=3, seed=seed)
        for epoch in range(3):
            rows = reader({POSITION: 3 * epoch + np.arange(3)})
            tiles[seed, epoch] = rows[TILE][rows["slide"].tolist().index("p1-0")].tobytes()
    assert len(set(tiles.values())) == 6


def test_a_sample_that_cannot_be_read_is_a_quarantined_row_with_its_reason():
    reader = make_reader(broken=(2, 5))
    rows = reader({POSITION: np.arange(7)})
    bad = rows[STATUS] == QUARANTINED
    assert sorted(rows["slide"][bad]) == ["p2-0", "p5-0"]
    assert rows[REASON][bad].tolist() == [f"unreadable: sample {key[1]} is broken on purpose" for key in rows["slide"][bad]]
    assert (rows[REASON][~bad] == "").all()
    assert not rows[TILE][bad].any()
    assert not rows[TARGET_PREFIX + "np"][bad].any()


def test_a_fault_of_the_program_is_not_quarantined():
    reader = make_reader()
    reader.source = ListSource([Decoded(image=np.zeros((30, 40, 3), np.uint8))] * 7)  # nuclei without instances
    with pytest.raises(TypeError):
        reader({POSITION: np.arange(3)})


def test_global_generators_are_neither_used_nor_moved():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    first = make_reader()({POSITION: np.arange(7)})
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.random.get_rng_state(), states[2])
    np.random.seed(5), torch.manual_seed(5)
    assert_rows_equal(make_reader()({POSITION: np.arange(7)}), first)


# ----------------------------------------------------------------------------------------------------------------- reading


def positions_read(reader, plan, done, *, batch_size, world_size):
    """Positions of each step, by rank."""
    streams = [
        [
            rows[POSITION].tolist()
            for rows in read_here(reader, plan, done, batch_size=batch_size, rank=rank, world_size=world_size)
        ]
        for rank in range(world_size)
    ]
    assert len({len(stream) for stream in streams}) == 1, "all ranks make the same number of steps"
    return list(zip(*streams, strict=True))


def test_a_step_has_the_same_positions_whatever_the_number_of_ranks():
    reader, plan = make_reader(Task.CLASSIFICATION, augment=None), plan_of(7)
    one = positions_read(reader, plan, Intervals(), batch_size=4, world_size=1)
    two = positions_read(reader, plan, Intervals(), batch_size=2, world_size=2)
    assert [sorted(step[0]) for step in one] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13]]
    assert [sorted(sum(step, [])) for step in two] == [sorted(step[0]) for step in one]


@given(
    done=st.sets(st.integers(0, 13)),
    batch_size=st.integers(1, 3),
    world_size=st.integers(1, 3),
    sampling=st.sampled_from(["natural", "balanced"]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_left_is_read_exactly_once_by_any_number_of_ranks(done, batch_size, world_size, sampling):
    reader, plan = make_reader(Task.CLASSIFICATION, augment=None, sampling=sampling), plan_of(7)
    steps = positions_read(
        reader, plan, Intervals.of(np.array(sorted(done), dtype=np.int64)), batch_size=batch_size, world_size=world_size
    )
    read = sorted(position for step in steps for share in step for position in share)
    assert read == [position for position in range(14) if position not in done]
    assert all(len(share) <= batch_size for step in steps for share in step)


def test_a_resumed_reading_goes_on_with_the_same_batches():
    reader, plan = make_reader(Task.CLASSIFICATION), plan_of(7)
    whole = list(read_here(reader, plan, Intervals(), batch_size=3))
    rest = list(read_here(make_reader(Task.CLASSIFICATION), plan, Intervals([(0, 6)]), batch_size=3))
    for one, other in zip(whole[2:], rest, strict=True):
        assert_rows_equal(one, other)


def test_a_reading_that_is_given_up_ends_its_thread():
    import threading

    before = threading.active_count()
    stream = read_here(make_reader(), plan_of(7), Intervals(), batch_size=2)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_an_error_while_reading_reaches_the_trainer():
    reader = make_reader()
    reader.source = ListSource([])
    with pytest.raises(IndexError):
        next(read_here(reader, plan_of(7), Intervals(), batch_size=2))
