import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from csat.runs.plan import Intervals, Plan

positions_sets = st.sets(st.integers(0, 200), max_size=80)


@given(positions_sets, positions_sets)
def test_intervals_are_the_set_they_stand_for(a, b):
    union = Intervals.of(np.array(sorted(a), dtype=np.int64)) | Intervals.of(np.array(list(b), dtype=np.int64))
    everything = np.arange(-2, 205)
    assert set(everything[union.contains(everything)].tolist()) == a | b
    assert len(union) == len(a | b)
    assert Intervals(union.pairs()) == union
    pairs = union.pairs()
    assert all(stop < start for (_, stop), (start, _) in zip(pairs, pairs[1:], strict=False)), "touching intervals must merge"
    assert union.first_gap() == next(p for p in range(300) if p not in a | b)


def make_plan(seed=3, epochs=2):
    return Plan(np.array([4, 4, 2, 4, 3, 4, 1]), np.array([0, 0, 0, 1, 1, 2, 2]), num_epochs=epochs, seed=seed)


def tiles_by_position(plan):
    """position → (chunk, row), by walking every slot."""
    seen = {}
    for slot in plan.slots():
        for offset, row in enumerate(plan.row_order(slot)):
            assert slot.first_position + offset not in seen
            seen[slot.first_position + offset] = (slot.chunk_index, int(row))
    return seen


def test_every_epoch_visits_every_tile_once():
    plan = make_plan()
    seen = tiles_by_position(plan)
    assert sorted(seen) == list(range(plan.num_positions))
    for epoch in range(plan.num_epochs):
        tiles = [seen[p] for p in range(epoch * plan.num_tiles, (epoch + 1) * plan.num_tiles)]
        assert len(set(tiles)) == plan.num_tiles
    assert [seen[p] for p in range(22)] != [seen[p] for p in range(22, 44)], "the second epoch has another order"


def test_the_tile_of_a_position_is_found_from_anywhere():
    plan = make_plan()
    seen = tiles_by_position(plan)
    positions = np.random.default_rng(0).permutation(plan.num_positions)
    chunks, rows = plan.tiles_at(positions)
    assert list(zip(chunks.tolist(), rows.tolist(), strict=True)) == [seen[p] for p in positions.tolist()]
    assert [len(each) for each in plan.tiles_at(np.empty(0, np.int64))] == [0, 0]


def test_order_follows_from_the_seed_alone():
    assert tiles_by_position(make_plan()) == tiles_by_position(pickle.loads(pickle.dumps(make_plan())))
    assert tiles_by_position(make_plan(seed=4)) != tiles_by_position(make_plan())


def test_shards_are_visited_one_after_the_other():
    plan = make_plan(epochs=4)
    for epoch in range(4):
        shards = [plan.chunk_shard[plan.slot(i).chunk_index] for i in range(epoch * 7, epoch * 7 + 7)]
        changes = sum(a != b for a, b in zip(shards, shards[1:], strict=False))
        assert changes == 2


@given(st.integers(0, 44))
def test_first_slot_is_where_the_first_undone_tile_is(num_done):
    plan = make_plan()
    first = plan.first_slot(Intervals([(0, num_done)]))
    if num_done == plan.num_positions:
        assert first == plan.num_slots
    else:
        slot = plan.slot(first)
        assert slot.first_position <= num_done < slot.first_position + slot.num_rows


def test_planning_a_hundred_million_tiles_is_cheap():
    num_chunks = 10**8 // 256
    plan = Plan(np.full(num_chunks, 256), np.arange(num_chunks) // 2500, num_epochs=10, seed=0)
    middle = plan.num_positions // 2
    slot = plan.slot(plan.first_slot(Intervals([(0, middle)])))
    assert slot.epoch == 5
    assert slot.first_position <= middle < slot.first_position + 256
    assert len(pickle.dumps(plan)) < 10 * 2**20


def test_without_a_seed_positions_are_places_in_the_manifest():
    plan = make_plan(seed=None, epochs=1)
    chunks = np.repeat(np.arange(plan.num_chunks), plan.chunk_rows).tolist()
    rows = [row for count in plan.chunk_rows.tolist() for row in range(count)]
    assert [place for _, place in sorted(tiles_by_position(plan).items())] == list(zip(chunks, rows, strict=True))
    assert plan.first_slot(Intervals([(0, 9)])) == 2
    assert [found.tolist() for found in plan.tiles_at(np.array([10, 0]))] == [[3, 0], [0, 0]]


@given(positions_sets, st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), min_size=1, max_size=20))
def test_ranges_that_a_set_covers(positions, ranges):
    done = Intervals.of(np.array(sorted(positions), dtype=np.int64))
    starts = np.array([first for first, _ in ranges])
    stops = starts + [length for _, length in ranges]
    expected = [set(range(first, stop)) <= positions for first, stop in zip(starts, stops, strict=True)]
    assert done.cover(starts, stops).tolist() == expected
