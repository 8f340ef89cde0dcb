"""Rates in, a plan out: by hand, and what holds for any cluster."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.errors import ConfigError
from csat.runs.forecast import (
    CORES,
    READING,
    STUDENT,
    TEACHER,
    Costs,
    KeptCosts,
    Machines,
    Shares,
    TeacherCosts,
    TeacherPlan,
    TeacherShares,
    as_record,
    forecast,
)
from csat.runs.planner import SAME, make_plan

MACHINES = Machines(cpus=2, node_cpus=2, memory_bytes=20e9, store_bytes=1e9)
COSTS = Costs(read_s=0.001, teacher={1: 10.0, 2: 19.0}, student={1: 40.0, 2: 70.0}, bytes_per_tile=2e5)
SHARES = Shares(reader_cpus=0.25, teacher_cpus=0.5, teacher_gpus=0, worker_cpus=1, worker_gpus=0, workers=1, chunk_tiles=128)


def test_by_hand():
    """A teacher four times slower than its student, on two cores that all share."""
    one = forecast(MACHINES, COSTS, SHARES, readers=1, actors=1, teacher_threads=1, student_threads=1)
    assert one.stages == pytest.approx({READING: 1000, TEACHER: 10, STUDENT: 40, CORES: 2 / (0.001 + 0.1 + 0.025)})
    assert (one.tiles_per_s, one.bottleneck) == (10, TEACHER)
    assert (one.cpus, one.gpus) == (1.75, 0)
    two = forecast(MACHINES, COSTS, SHARES, readers=1, actors=1, teacher_threads=2, student_threads=1)
    assert (two.tiles_per_s, two.bottleneck) == (pytest.approx(15.873, abs=1e-3), CORES)
    assert make_plan(MACHINES, COSTS, SHARES) == one  # three threads on two cores would wait for each other
    with_room = make_plan(replace(MACHINES, cpus=3, node_cpus=3), COSTS, replace(SHARES, actors=1))
    assert (with_room.teacher_threads, with_room.student_threads, with_room.tiles_per_s) == (2, 1, 19)
    smaller = make_plan(MACHINES, COSTS, replace(SHARES, teacher_cpus=0.25))
    assert (smaller.actors, smaller.teacher_threads, smaller.bottleneck) == (2, 1, CORES)  # processes take turns
    assert two.over(1_000_000, 2e5) == pytest.approx({"hours": 1e6 / 15.873 / 3600, "gb_moved": 200, "gpu_hours": 0}, rel=1e-4)


def test_what_travels_costs_cores():
    slower = make_plan(MACHINES, replace(COSTS, travel_s=0.024), replace(SHARES, teacher_threads=2))
    assert slower.tiles_per_s == pytest.approx(2 / 0.15)


def test_cores_that_others_keep_busy_are_no_help():
    taken = replace(MACHINES, taken_cpus=0.2)
    plan = make_plan(taken, COSTS, replace(SHARES, teacher_threads=2))
    assert (plan.tiles_per_s, plan.bottleneck) == (pytest.approx(1.8 / 0.126), CORES)
    assert taken.with_node().taken_cpus == pytest.approx(0.4)


def test_a_slow_student_is_given_threads():
    plan = make_plan(replace(MACHINES, cpus=3, node_cpus=3), replace(COSTS, teacher={1: 500.0, 2: 600.0}), SHARES)
    assert (plan.student_threads, plan.teacher_threads, plan.bottleneck) == (2, 1, STUDENT)


def test_a_teacher_on_gpus():
    """Two GPUs, two trainers that have one each of four; two actors fit, and what a core does is of no matter for them."""
    machines = Machines(cpus=32, gpus=4, node_cpus=32, memory_bytes=100e9, store_bytes=50e9)
    shares = replace(SHARES, teacher_cpus=1, teacher_gpus=1, worker_cpus=4, worker_gpus=1, workers=2, reader_cpus=1)
    costs = replace(COSTS, teacher={1: 300.0}, student={1: 4000.0}, travel_s=0.0005)
    plan = make_plan(machines, costs, shares)
    assert (plan.actors, plan.gpus, plan.tiles_per_s, plan.bottleneck) == (2, 4, 600, TEACHER)
    assert make_plan(machines.with_gpu(), costs, shares).tiles_per_s == 900
    halves = make_plan(machines, costs, replace(shares, teacher_gpus=0.5))
    assert (halves.actors, halves.tiles_per_s) == (4, 600)  # two on a GPU share its rate


SECOND = TeacherShares(name="tissue", cpus=1, gpus=0)
TWO = replace(SHARES, teacher_name="nuclei", others=(SECOND,))
BOTH = replace(COSTS, others=(TeacherCosts(rates={1: 4.0}, process_bytes=1e9),))


def test_two_teachers_by_hand():
    """Each is a stage of its own, and a tile costs what both of them cost."""
    second = (TeacherPlan(actors=2, threads=1),)
    numbers = {"readers": 1, "actors": 1, "teacher_threads": 1, "student_threads": 1, "others": second}
    plan = forecast(MACHINES, BOTH, TWO, **numbers)
    names = (f"{TEACHER} nuclei", f"{TEACHER} tissue")
    cores = 2 / (0.001 + 0.1 + 0.25 + 0.025)
    assert plan.stages == pytest.approx({READING: 1000, names[0]: 10, names[1]: 8, STUDENT: 40, CORES: cores})
    assert (plan.tiles_per_s, plan.bottleneck) == (pytest.approx(cores), CORES)
    assert (plan.cpus, plan.gpus) == (0.25 + 0.5 + 2 * 1 + 1, 0)
    assert as_record(plan)["others"] == [{"actors": 2, "threads": 1}]


def test_actors_of_two_teachers_keep_pace_with_each_other():
    """Of a teacher at 10 tiles/s two actors, beside five of one that makes 4: then there is no CPU left for more."""
    costs = replace(BOTH, teacher={1: 10.0}, student={1: 1000.0})
    machines = replace(MACHINES, cpus=7.5, node_cpus=4)
    plan = make_plan(machines, costs, replace(TWO, teacher_threads=1))
    assert (plan.actors, plan.others[0].actors, plan.readers) == (2, 5, 1)
    assert plan.tiles_per_s == pytest.approx(min(20, 7.5 / (0.001 + 0.1 + 0.25 + 0.001)))
    settled = make_plan(machines, costs, replace(TWO, others=(replace(SECOND, actors=1),)))
    assert (settled.actors, settled.others[0].actors, settled.tiles_per_s) == (1, 1, 4)
    assert settled.bottleneck == f"{TEACHER} tissue"


def test_two_teachers_on_gpus_share_what_there_is():
    """Three GPUs beside one trainer's: the slow teacher gets two of them."""
    machines = Machines(cpus=32, gpus=4, node_cpus=32, memory_bytes=100e9, store_bytes=50e9)
    shares = replace(TWO, teacher_cpus=1, teacher_gpus=1, worker_gpus=1, others=(replace(SECOND, gpus=1),))
    costs = replace(BOTH, teacher={1: 300.0}, student={1: 4000.0}, others=(TeacherCosts(rates={1: 120.0}),))
    plan = make_plan(machines, costs, shares)
    assert (plan.actors, plan.others[0].actors, plan.gpus, plan.tiles_per_s) == (1, 2, 4, 240)
    assert make_plan(machines.with_gpu(), costs, shares).tiles_per_s == 300
    with pytest.raises(ConfigError, match="2 teacher actors and 1 readers take .* 3 GPUs"):
        make_plan(replace(machines, gpus=2), costs, shares)


KEPT = KeptCosts(keep_s=0.02, read_s=0.002)
NUMBERS = {"readers": 1, "actors": 1, "teacher_threads": 1, "student_threads": 1}


def test_kept_responses_by_hand():
    """In the first of four epochs the teacher answers, at 8.3 tiles/s; later ones wait for the student."""
    kept = COSTS.with_kept([KEPT], epochs=4)
    plan = forecast(MACHINES, kept, SHARES, **NUMBERS)
    assert plan.by_epoch == pytest.approx((1 / 0.12, 40))
    assert plan.tiles_per_s == pytest.approx(4 / (0.12 + 3 * 0.025))
    assert (plan.bottleneck, plan.stages[TEACHER]) == (TEACHER, pytest.approx(1 / 0.12)), (
        "most of the time is the first epoch's"
    )
    assert plan.stages[CORES] == pytest.approx(2 / (0.001 + 0.1 + 0.02 + 0.025))
    long = forecast(MACHINES, COSTS.with_kept([KEPT], epochs=40), SHARES, **NUMBERS)
    assert (long.bottleneck, long.stages[TEACHER]) == (STUDENT, pytest.approx(500))
    assert long.stages[CORES] == pytest.approx(2 / (0.001 + 0.002 + 0.025))


def test_what_is_complete_is_read_in_every_epoch():
    plan = forecast(MACHINES, COSTS.with_kept([replace(KEPT, is_complete=True)], epochs=4), SHARES, **NUMBERS)
    assert (plan.tiles_per_s, plan.bottleneck, plan.by_epoch) == (40, STUDENT, ())


def test_nothing_kept_is_as_before_and_one_epoch_only_writes():
    assert forecast(MACHINES, COSTS.with_kept([None], epochs=4), SHARES, **NUMBERS) == forecast(
        MACHINES, COSTS, SHARES, **NUMBERS
    )
    plan = forecast(MACHINES, COSTS.with_kept([KEPT], epochs=1), SHARES, **NUMBERS)
    assert (plan.tiles_per_s, plan.by_epoch) == (pytest.approx(1 / 0.12), ())


def test_of_two_teachers_one_may_be_kept():
    second = (TeacherPlan(actors=2, threads=1),)
    costs = BOTH.with_kept([None, KEPT], epochs=2)
    plan = forecast(MACHINES, costs, TWO, **NUMBERS, others=second)
    assert plan.by_epoch == pytest.approx((2 / (0.001 + 0.1 + 0.25 + 0.02 + 0.025), 10))
    on_gpu = replace(TWO, others=(replace(SECOND, gpus=1),))
    assert forecast(MACHINES, costs, on_gpu, **NUMBERS, others=second).stages[CORES] == pytest.approx(2 / 0.146)


def test_readers_have_half_as_much_again_to_do_as_is_needed():
    """At 10 tiles/s one that could read 14 is not enough; where there is no room for a second, it has to be."""
    costs = replace(COSTS, read_s=1 / 14)
    one_teacher = replace(SHARES, actors=1, teacher_threads=1)
    plan = make_plan(MACHINES, costs, one_teacher)
    assert (plan.readers, plan.tiles_per_s, plan.cpus) == (2, 10, 2)
    assert make_plan(MACHINES, replace(COSTS, read_s=1 / 16), one_teacher).readers == 1
    assert make_plan(MACHINES, costs, replace(one_teacher, readers=1)).readers == 1
    full = make_plan(MACHINES, costs, replace(one_teacher, reader_cpus=0.5))
    assert (full.readers, full.tiles_per_s) == (1, 10)


def test_what_is_settled_stays():
    plan = make_plan(MACHINES, COSTS, replace(SHARES, readers=1, actors=1, teacher_threads=1, student_threads=2))
    assert (plan.readers, plan.actors, plan.teacher_threads, plan.student_threads) == (1, 1, 1, 2)


def test_threads_that_were_not_measured_are_as_fast_as_fewer():
    plan = make_plan(replace(MACHINES, cpus=8, node_cpus=8), COSTS, replace(SHARES, actors=1, teacher_threads=6))
    assert (plan.teacher_threads, plan.stages[TEACHER]) == (6, 19)


def test_what_cannot_be_held_is_refused():
    with pytest.raises(ConfigError, match="3 workers, 1 teacher actors and 1 readers take 3.75 CPUs.* it has 2, 0 and 20.0"):
        make_plan(MACHINES, COSTS, replace(SHARES, workers=3))
    with pytest.raises(ConfigError, match="1 GPUs"):
        make_plan(MACHINES, COSTS, replace(SHARES, teacher_gpus=1))
    with pytest.raises(ConfigError, match="30.0 GB of memory at least"):
        make_plan(MACHINES, replace(COSTS, teacher_bytes=30e9), SHARES)


def test_memory_bounds_the_actors():
    machines = replace(MACHINES, cpus=16, node_cpus=16)
    costs = replace(COSTS, teacher={1: 1.0}, student={1: 1000.0}, teacher_bytes=4e9)
    assert make_plan(machines, costs, SHARES).actors == 5


rates = st.floats(0.05, 5000)
machines_like = st.builds(
    Machines,
    cpus=st.integers(1, 24),
    gpus=st.integers(0, 4),
    node_cpus=st.just(1.0),
    memory_bytes=st.floats(1e9, 1e11),
    store_bytes=st.floats(1e8, 1e11),
    taken_cpus=st.floats(0, 0.5),
)
costs_like = st.builds(
    Costs,
    read_s=st.floats(1e-4, 1),
    teacher=st.fixed_dictionaries({1: rates, 2: rates}),
    student=st.fixed_dictionaries({1: rates, 4: rates}),
    travel_s=st.floats(0, 0.1),
    bytes_per_tile=st.floats(1e3, 1e7),
    teacher_bytes=st.floats(0, 1e10),
)
shares_like = st.builds(
    Shares,
    reader_cpus=st.sampled_from([0.25, 1.0]),
    teacher_cpus=st.sampled_from([0.5, 2.0]),
    teacher_gpus=st.sampled_from([0, 0, 0.5, 1]),
    worker_cpus=st.sampled_from([0.5, 1.0]),
    worker_gpus=st.sampled_from([0, 0, 1]),
    workers=st.integers(1, 3),
    chunk_tiles=st.just(128),
)


def planned(machines, costs, shares):
    try:
        return make_plan(machines, costs, shares)
    except ConfigError:
        return None


@given(machines_like, costs_like, shares_like)
def test_no_plan_takes_more_than_there_is(machines, costs, shares):
    plan = planned(replace(machines, node_cpus=machines.cpus), costs, shares)
    if plan is not None:
        assert plan.cpus <= machines.cpus + 1e-6 and plan.gpus <= machines.gpus + 1e-6
        assert plan.actors * costs.teacher_bytes <= machines.memory_bytes
        assert 0 < plan.tiles_per_s <= min(plan.stages.values())
        assert plan.stream_bytes <= machines.store_bytes


@given(machines_like, costs_like, shares_like, st.booleans())
def test_more_is_never_slower(machines, costs, shares, is_gpu):
    machines = replace(machines, node_cpus=machines.cpus)
    less, more = (
        planned(machines, costs, shares),
        planned(machines.with_gpu() if is_gpu else machines.with_node(), costs, shares),
    )
    if less is not None:
        assert more is not None and more.tiles_per_s * SAME >= less.tiles_per_s
