"""A few tiles through the run's own stages, in this process, and the plan that follows from the figures."""

import json
from dataclasses import replace

import pytest

from csat.model.student import StudentConfig
from csat.runs.forecast import Costs, KeptCosts, Machines, TeacherCosts, as_record
from csat.runs.planner import make_plan
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.planned_reader import columns_of
from csat.tiles.sample import spread
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from csat.training.config import TrainConfig
from workflows.pretraining.calibration import Calibration, Measured, measure_student, measure_teacher
from workflows.pretraining.check import describe
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.job import make_job
from workflows.pretraining.plan import costs_of, in_words, planned, shares_of
from workflows.shell.config import NamedTeacher, PoolConfig, ReaderConfig, TeacherConfig, WorkerConfig

MACHINES = Machines(cpus=8, node_cpus=8, memory_bytes=20e9, store_bytes=1e9)
COSTS = Costs(read_s=0.001, teacher={1: 10.0, 2: 19.0}, student={1: 400.0}, bytes_per_tile=2e5, teacher_bytes=1e9)


def config_of(folder, **changes):
    settings = {
        "teacher": TeacherConfig(name="stain"),
        "data": TilingConfig(mpp=0.5, tile_px=64),
        "student": StudentConfig(backbone="csat_nano", decoder_channels=16),
        "train": TrainConfig(batch_size=8, precision="float32"),
    }
    return PretrainConfig(run_folder=str(folder / "run"), slides=["x"], **{**settings, **changes})


def test_the_runs_own_stages_are_measured(tmp_path):
    config = config_of(tmp_path)
    (slide,) = list_slides([str(make_slides(tmp_path, num_slides=1, size_px=512, seed=1)[0])])
    rows = spread(columns_of(tile_slide(slide, config.data)), 8)
    job, _ = make_job(config, describe(config))
    job = replace(job, stream=replace(job.stream, manifest_uri=str(tmp_path / "crashes")))
    teacher, answered = measure_teacher(job.stream, rows, [1], (4,))
    assert teacher.by_threads().keys() == {1} and teacher.by_threads()[1] > 0
    assert 0 < teacher.read_s < 1 and teacher.peak_bytes > 1e7
    assert {"response_np", "tile", "teacher_s"} <= answered.keys()
    student = measure_student(job, answered, [1], (8, 32))
    assert student.rates.keys() == {(1, 8)}, "no step is larger than the run's"
    assert student.by_threads()[1] > 0
    both = config_of(tmp_path, student=StudentConfig(), students={"nano": "csat_nano", "res": "resnet18"})
    job = replace(make_job(both, describe(both))[0], stream=job.stream)
    assert measure_student(job, answered, [1], (8,)).by_threads()[1] < student.by_threads()[1], "all students make a step"
    assert not (tmp_path / "run").exists(), "nothing is written where the run will be"


def test_each_of_several_teachers_is_measured_after_the_one_before(tmp_path):
    """With the pixels and the answers that it gets in the run; its pool is planned by itself, and said by its name."""
    teachers = {"coarse": NamedTeacher(name="stain", shrink=2), "fine": NamedTeacher(name="stain", pool=PoolConfig(threads=1))}
    config = replace(config_of(tmp_path), teacher=None, teachers=teachers)
    (slide,) = list_slides([str(make_slides(tmp_path, num_slides=1, size_px=512, seed=1)[0])])
    job, _ = make_job(config, describe(config))
    job = replace(job, stream=replace(job.stream, manifest_uri=str(tmp_path / "crashes")))
    first, answered = measure_teacher(job.stream, spread(columns_of(tile_slide(slide, config.data)), 8), [1], (4,))
    second, answered = measure_teacher(job.stream, answered, [1], (4,), 1)
    assert {"response_coarse.np", "response_fine.np", "unanswered_fine"} <= answered.keys()
    student = measure_student(job, answered, [1], (8,))
    others = (TeacherCosts(rates=second.by_threads(), process_bytes=second.peak_bytes),)
    costs = replace(COSTS, teacher=first.by_threads(), student=student.by_threads(), others=others)
    calibration = Calibration(costs=costs, teacher=first, student=student, seconds=1.0, others={"fine": second})
    record = json.loads(json.dumps(calibration.as_record()))
    assert costs_of(record) == costs
    plan = as_record(make_plan(MACHINES, costs, shares_of(config)))
    settled = planned(config, json.loads(json.dumps(plan)))
    assert settled.asked["coarse"].pool.max_actors == plan["actors"] and settled.asked["fine"].pool.threads == 1
    assert settled.asked["fine"].pool.max_actors == plan["others"][0]["actors"] and settled.teacher is None
    takes = {"hours": 1.0, "gb_moved": 1.0, "gpu_hours": 0.0}
    said = in_words({"calibration": record, "positions": 10, "plan": plan, "takes": takes, "with": {}})
    assert "  coarse      actors: " in said and "(teachers.coarse.pool.max_actors)" in said
    assert "  fine        actors: " in said and "micro_batch" not in said, "stain takes what comes"
    record["others_tiles_per_s"]["fine"] += [{"threads": 1, "tiles": 99, "tiles_per_s": 1e9}]
    said = in_words({"calibration": record, "positions": 10, "plan": plan, "takes": takes, "with": {}})
    assert "fastest with tiles at once: 99 (teachers.fine.options.micro_batch)" in said


def test_tiles_that_cannot_be_read_are_said(tmp_path):
    config = config_of(tmp_path)
    path = make_slides(tmp_path, num_slides=1, size_px=512, seed=1)[0]
    rows = spread(columns_of(tile_slide(list_slides([str(path)])[0], config.data)), 4)
    path.write_bytes(b"no slide any more")
    job, _ = make_job(config, describe(config))
    job = replace(job, stream=replace(job.stream, manifest_uri=str(tmp_path / "crashes")))
    assert measure_teacher(job.stream, rows, [1], (4,)) == "none of the tiles that were tried could be read"


def test_the_size_of_the_run_counts_and_no_faster_one():
    measured = Measured(rates={(1, 4): 5.0, (1, 8): 7.0, (2, 4): 6.0}, size=4, peak_bytes=1e9)
    assert measured.by_threads() == {1: 5.0, 2: 6.0}


def test_a_teacher_is_planned_with_the_tiles_at_once_that_it_will_have(tmp_path, monkeypatch):
    """HoVer-Net answers one by one on a CPU; measured in fours it would seem slower than it is in the run."""
    teacher = TeacherConfig(name="hovernet", options={"random_weights": True, "width": 0.0625, "mpp": 0.5})
    config = config_of(tmp_path, teacher=teacher, data=TilingConfig(mpp=0.5, tile_px=256))
    (slide,) = list_slides([str(make_slides(tmp_path, num_slides=1, size_px=1024, seed=1)[0])])
    job, _ = make_job(config, describe(config))
    job = replace(job, stream=replace(job.stream, manifest_uri=str(tmp_path / "crashes")))
    monkeypatch.setattr("workflows.pretraining.calibration._rate", lambda run, num_tiles, enough_s: num_tiles / len(run()))
    rows = spread(columns_of(tile_slide(slide, config.data)), 6)
    teacher, _ = measure_teacher(job.stream, rows, [1, 2], (4, 8))
    assert teacher.size == 1 and set(teacher.rates) == {(1, 1), (1, 4), (2, 1)}
    assert teacher.by_threads() == {1: teacher.rates[1, 1], 2: teacher.rates[2, 1]}
    brief, _ = measure_teacher(job.stream, rows, [1], ())
    assert set(brief.rates) == {(1, 1)}


def test_figures_survive_json(tmp_path):
    measured = Measured(rates={(1, 4): 5.0}, size=4, peak_bytes=1e9)
    calibration = Calibration(costs=COSTS, teacher=measured, student=measured, seconds=3.0)
    assert costs_of(json.loads(json.dumps(calibration.as_record()))) == COSTS


def test_what_the_settings_say_stands_and_the_rest_is_planned(tmp_path):
    config = config_of(tmp_path, pool=PoolConfig(max_actors=3), workers=WorkerConfig(threads=2))
    plan = as_record(make_plan(MACHINES, COSTS, shares_of(config)))
    assert (plan["actors"], plan["student_threads"]) == (3, 2)
    settled = planned(config, plan)
    assert (settled.pool.min_actors, settled.pool.max_actors, settled.workers.threads) == (1, 3, 2)
    assert (settled.pool.threads, settled.readers.max_actors) == (plan["teacher_threads"], plan["readers"])
    free = planned(config_of(tmp_path, readers=ReaderConfig(min_actors=2)), plan)
    assert (free.pool.min_actors, free.pool.max_actors) == (3, 3), "all of them from the start"
    assert (free.readers.min_actors, free.readers.max_actors) == (2, 2), "no less than the least"
    assert planned(config_of(tmp_path, pool=PoolConfig(min_actors=4)), plan).pool.max_actors == 4


def test_the_plan_in_words(tmp_path):
    plan = make_plan(MACHINES, COSTS, shares_of(config_of(tmp_path)))
    measured = [{"threads": 1, "tiles": 8, "tiles_per_s": 10.0}, {"threads": 1, "tiles": 32, "tiles_per_s": 8.0}]
    said = in_words(
        {
            "calibration": {"seconds": 31.4, "teacher_tiles_per_s": measured},
            "positions": 10**6,
            "plan": as_record(plan),
            "takes": plan.over(10**6, COSTS.bytes_per_tile),
            "with": {"one more node": {"tiles_per_s": 200.0, "times": 2.0, "bottleneck": "the teacher", "actors": 9}},
        }
    )
    assert "fastest with tiles at once: 8 (teacher.options.micro_batch)" in said
    assert f"limited by {plan.bottleneck}" in said and "one more node 200 tiles/s (2.00 x)" in said
    assert "1,000,000 tiles" in said and "200 GB between processes" in said and "epoch" not in said


def test_a_plan_whose_responses_are_kept_has_two_rates(tmp_path):
    costs = COSTS.with_kept([KeptCosts(keep_s=0.02, read_s=0.002)], epochs=4)
    plan = make_plan(MACHINES, costs, shares_of(config_of(tmp_path)))
    measured = [{"threads": 1, "tiles": 8, "tiles_per_s": 10.0}]
    calibration = {"seconds": 31.4, "teacher_tiles_per_s": measured}
    record = {"calibration": calibration, "positions": 4, "plan": as_record(plan), "takes": plan.over(4, 1), "with": {}}
    first, later = plan.by_epoch
    assert f"{first:,.4g} in the first epoch, {later:,.4g} in later ones" in in_words(json.loads(json.dumps(record)))


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_no_plan_is_faster_than_its_slowest_stage(stage, tmp_path):
    costs = replace(COSTS, **{stage: {1: 0.5}})
    plan = make_plan(MACHINES, costs, replace(shares_of(config_of(tmp_path)), actors=1))
    assert (plan.tiles_per_s, plan.bottleneck) == (0.5, f"the {stage}")
