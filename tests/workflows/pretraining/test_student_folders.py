"""Several students from their first step to what they leave behind, in this process; one of them diverges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from csat.columns import OK, POSITION, READ_S, REASON, STATUS, TILE
from csat.errors import ConfigError
from csat.methods.rckd import RCKD
from csat.methods.registry import METHODS
from csat.model.files import exported_folder, load_exported
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.settings import with_places
from csat.tiles.grid import TilingConfig
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.optim import OptimConfig
from teachers.contract import teacher_record
from teachers.stage import TeacherStage
from workflows.pretraining.check import describe
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.finish import finish
from workflows.pretraining.job import make_job
from workflows.pretraining.start import EXIT_CODE_DIVERGED, tell_result
from workflows.pretraining.students import begin_students
from workflows.shell.config import MethodConfig, TeacherConfig

NUM_TILES, TILE_PX = 16, 64
TRAIN = TrainConfig(epochs=2, batch_size=8, log_every_steps=1, precision="float32", optim=OptimConfig(lr=1e-3, warmup=0.0))
FRAGILE = 5  # decoder channels of the student that diverges
NAN_FROM = 16  # position: in the third of four steps


class Fragile(RCKD):
    """A method whose loss is not finite for one student, from some step on."""

    def forward(self, batch, turn="student"):
        terms = super().forward(batch, turn)
        if self.training and self.student.config.decoder_channels == FRAGILE:
            terms["np_bce"] = terms["np_bce"] + torch.where(batch.positions >= NAN_FROM, float("nan"), 0.0)
        return terms


def answered(stage, plan):
    """A context with rows of noise, answered by the teacher."""

    def batches(size):
        for start in range(0, plan.num_positions, size):
            positions = np.arange(start, start + size)
            shades = [np.random.default_rng(p).normal(140, 60, (TILE_PX, TILE_PX, 3)) for p in positions % NUM_TILES]
            rows = {POSITION: positions, TILE: np.stack(shades).clip(0, 255).astype(np.uint8)}
            rows |= {STATUS: np.full(size, OK, np.uint8), REASON: np.full(size, "", object)}
            rows |= {READ_S: np.zeros(size, np.float32), "slide": np.full(size, "a.svs", object)}
            yield stage({**rows, "x_px": positions, "y_px": positions})

    return TrainContext(batches)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three students, and what `finish` said of those that diverged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "fragile", Fragile)
        folder = RunFolder(str(tmp_path_factory.mktemp("students") / "run"))
        config = with_places(
            PretrainConfig(
                run_folder=folder.uri,
                slides=["a.svs"],
                teacher=TeacherConfig(name="stain"),
                data=TilingConfig(mpp=0.5, tile_px=TILE_PX),
                students={
                    "nano": {"backbone": "csat_nano", "decoder_channels": 16},
                    "broken": {"backbone": "csat_nano", "decoder_channels": FRAGILE},
                    "half": {"backbone": "csat_nano", "decoder_channels": 8, "downsample": 2},
                },
                method=MethodConfig(name="fragile"),
                train=TRAIN,
            )
        )
        teacher = describe(config)
        folder.write_config(config)
        folder.write_json("teacher.json", teacher_record(teacher))
        slides = {"given": 1, "tiled": 1, "quarantined": 0}
        folder.write_json("manifest/index.json", {"mpp": 0.5, "num_tiles": NUM_TILES, "slides": slides})
        begin_students(folder, config)
        job, _ = make_job(config, teacher)
        job = replace(job, stream=replace(job.stream, plan=Plan([NUM_TILES], [0], num_epochs=2, seed=0)))
        asked = job.stream.teachers[0]
        stage = TeacherStage("stain", wanted=[spec.name for spec in asked.responses], options=asked.teacher.options)
        assert job.work(answered(stage, job.plan)) == {"step": 4, "tiles": 2 * NUM_TILES}
        yield folder, finish(folder, job, holdout=None)


WHY = "step 3 (student): loss term np_bce is not finite"


def test_the_one_that_diverged_is_named_everywhere(run, capsys):
    folder, diverged = run
    assert diverged == {"broken": WHY}
    students = folder.read_json("students.json")
    assert {name: each["state"] for name, each in students.items()} == {
        "nano": "trained",
        "broken": "diverged",
        "half": "trained",
    }
    assert students["broken"]["error"] == WHY and (students["broken"]["steps"], students["broken"]["tiles"]) == (2, NUM_TILES)
    assert folder.read_json("accounting.json")["students"]["broken"]["error"] == WHY
    assert RunFolder(folder.path("students", "broken")).read_json("status.json") == {
        "state": "failed",
        "error": WHY,
        "kind": "NonFiniteLossError",
    }
    for page in ("report.html", "students.html"):
        assert f"broken diverged and was stopped after {NUM_TILES} tiles" in page_of(folder, page)
    capsys.readouterr()
    assert tell_result(folder) == EXIT_CODE_DIVERGED == 3
    assert f"student broken: diverged and was stopped, and has left no model: {WHY}" in capsys.readouterr().out
    assert (
        len(read_metrics(folder.path("students", "broken"))) == 2 and len(read_metrics(folder.path("students", "nano"))) == 4
    )


def page_of(folder, name):
    with open(folder.path(name)) as file:
        return file.read()


def test_each_of_the_others_opens_as_a_run_of_its_own(run):
    folder, _ = run
    for name, edge_px in (("nano", TILE_PX), ("half", TILE_PX // 2)):
        own = RunFolder(folder.path("students", name))
        student = load_exported(own.uri)
        assert {spec.name for spec in student.responses} == {"np", "hv"}
        assert student.config.decoder_channels == {"nano": 16, "half": 8}[name]
        config = own.config()
        assert config["student"]["decoder_channels"] == student.config.decoder_channels and config["students"] == {}
        assert own.is_finished() and own.read_json("teacher.json") == folder.read_json("teacher.json")
        cost = own.read_json("throughput.json")["student"]
        assert cost["input_px"] == edge_px and cost["params"] > 1000 and cost["tiles_per_s"] > 0
        page = page_of(own, "report.html")
        assert f"stain → {name}" in page and 'href="../../students.html"' in page
    shares = [each["step_share"] for each in folder.read_json("students.json").values()]
    assert sum(shares) == pytest.approx(1)


def test_what_is_no_model_says_what_there_is(run):
    folder, _ = run
    with pytest.raises(ConfigError, match=r"has several students: choose one of .*students/broken, .*students/half, .*/nano"):
        exported_folder(folder.uri)
    with pytest.raises(ConfigError, match="students/broken has failed and left no model: step 3"):
        exported_folder(folder.path("students", "broken"))
