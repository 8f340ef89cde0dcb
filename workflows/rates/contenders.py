"""Three ways to the same student: this project, LightlyTrain, and a loop written by hand, each as a command of its user.

All are given the same images, the same file of weights for the teacher, the same student and batch. Each class knows its
command and what to read off its folder: images and seconds of every step.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from csat.precision import BFLOAT16, FLOAT32
from csat.runs.recorder import read_metrics
from workflows.rates.commands import Watched, run

TEACHER, STUDENT, TILE_PX, BATCH = "vit_small_patch14_dinov2", "resnet18", 224, 32
DEFAULTS = "defaults"  # in the place of a precision: nothing is said of it, nor of anything else that can be left open
Spread = dict[str, Any]  # how a contender uses the cores: names and values of its own settings
Steps = list[tuple[int, float]]  # images, seconds

LIGHTLY_CODE = """
import json, sys
if __name__ == "__main__":
    import lightly_train
    lightly_train.pretrain(**json.loads(sys.argv[1]))
"""
LIGHTLY_ENVIRONMENT = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}  # no telemetry: it waits for a network
LIGHTLY_PRECISION = {FLOAT32: "32-true", BFLOAT16: "bf16-mixed"}
# What LightlyTrain is told, so that it augments as the others do: flips and colours, without crops, blur and grey.
FLIPS_AND_COLOURS = {
    "random_resize": None,
    "random_flip": {"horizontal_prob": 0.5, "vertical_prob": 0.5},
    "random_gray_scale": None,
    "gaussian_blur": None,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What everybody is given."""

    weights: Path  # of the teacher: random ones cost the same as trained ones
    device: str
    seed: int

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"


class Contender(Protocol):
    """One way.

    Attributes:
        name: In tables.
        tried: Ways to use the cores, of which the fastest is taken; none: it decides for itself.
    """

    name: str
    tried: tuple[Spread, ...]

    def run(self, task: Task, images: Path, out: Path, precision: str, spread: Spread) -> tuple[Watched, Steps]:
        """Its command over a folder of images. Raises ConfigError where it fails."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """pretrain.py, with its defaults."""

    name: ClassVar[str] = "this project"
    tried: ClassVar[tuple[Spread, ...]] = ()
    more: list[str] = field(default_factory=list)  # arguments

    def run(self, task: Task, images: Path, out: Path, precision: str, spread: Spread) -> tuple[Watched, Steps]:
        arguments = self.command(task, images, out, precision)
        watched = run(arguments, watch=True)
        lines = read_metrics(str(out))
        done = [0, *(line["tiles"] for line in lines)]
        numbers = [after - before for before, after in zip(done, done[1:], strict=False)]
        return watched, [(number, number / line["tiles_per_s"]) for number, line in zip(numbers, lines, strict=True)]

    def command(self, task: Task, images: Path, out: Path, precision: str) -> list[str]:
        teacher = {"model": TEACHER, "num_classes": 0, "arguments": {"img_size": TILE_PX}}
        arguments = [
            "workflows/pretrain.py",
            f"--slides={images}",
            f"--run_folder={out}",
            "--teacher=timm",
            f"--teacher.weights={task.weights}",
            f"--student.backbone={STUDENT}",
            "--data.mpp=null",
            f"--data.tile_px={TILE_PX}",
            "--data.min_tissue=0",
            "--manifest.holdout_fraction=0",
            f"--train.batch_size={BATCH}",
            "--train.log_every_steps=1",
            f"--train.seed={task.seed}",
        ]
        if precision != DEFAULTS:
            teacher["precision"] = precision
            arguments.append(f"--train.precision={precision}")
        if task.is_cuda:
            arguments += ["--pool.gpus_per_actor=0.5", "--pool.max_actors=1", "--workers.gpus_per_worker=0.5"]
        return [*arguments, f"--teacher.options={json.dumps(teacher)}", *self.more]


@dataclass(frozen=True, kw_only=True)
class Lightly:
    """lightly_train.pretrain, its method `distillation`."""

    name: ClassVar[str] = "LightlyTrain"
    tried: ClassVar[tuple[Spread, ...]] = ({"num_workers": 0}, {"num_workers": 1}, {"num_workers": 1, "devices": 2})
    python: str  # that has it

    def run(self, task: Task, images: Path, out: Path, precision: str, spread: Spread) -> tuple[Watched, Steps]:
        script = out.with_suffix(".py")  # a file: with several devices it is started again
        script.write_text(LIGHTLY_CODE)
        settings = self.settings(task, images, out, precision) | spread
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // spread.get("devices", 1)))}
        arguments = [str(script), json.dumps(settings)]
        watched = run(arguments, python=self.python, watch=True, environment=LIGHTLY_ENVIRONMENT | threads)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        timed = [line for line in lines if "profiling/batch_time" in line]
        return watched, [(BATCH, line["profiling/batch_time"] + line.get("profiling/data_time", 0.0)) for line in timed]

    def settings(self, task: Task, images: Path, out: Path, precision: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "out": str(out),
            "data": str(images),
            "model": f"timm/{STUDENT}",
            "method": "distillation",
            "method_args": {
                "teacher": f"timm/{TEACHER}",
                "teacher_args": {"img_size": TILE_PX, "num_classes": 0},
                "teacher_weights": str(task.weights),
            },
            "epochs": 1,
            "batch_size": BATCH,
            "accelerator": "gpu" if task.is_cuda else "cpu",
            "seed": task.seed,
            "trainer_args": {"log_every_n_steps": 1},
        }
        if precision == DEFAULTS:
            return settings
        return settings | {"precision": LIGHTLY_PRECISION[precision], "transform_args": FLIPS_AND_COLOURS}

    def version(self) -> str:
        """Raises ConfigError: that Python does not have it."""
        code = ["-c", "import lightly_train; print('version', lightly_train.__version__)"]
        return run(code, python=self.python, environment=LIGHTLY_ENVIRONMENT).said.split("version ")[-1].strip()


@dataclass(frozen=True, kw_only=True)
class Loop:
    """handwritten.py."""

    name: ClassVar[str] = "written by hand"
    tried: ClassVar[tuple[Spread, ...]] = ({"workers": 1}, {"workers": 0, "processes": 2}, {"workers": 1, "processes": 2})

    def run(self, task: Task, images: Path, out: Path, precision: str, spread: Spread) -> tuple[Watched, Steps]:
        options: dict[str, Any] = {
            "images": images,
            "teacher": TEACHER,
            "weights": task.weights,
            "student": STUDENT,
            "out": out,
            "edge_px": TILE_PX,
            "batch_size": BATCH,
            "device": task.device,
            "seed": task.seed,
            "precision": FLOAT32 if precision == DEFAULTS else precision,
            **({"teacher_batch": BATCH} if task.is_cuda else {}),
            **spread,
        }
        watched = run(
            ["workflows/rates/handwritten.py", *(f"--{name}={value}" for name, value in options.items())], watch=True
        )
        lines = [json.loads(line) for line in (out / "steps-0.jsonl").read_text().splitlines()]
        first = (lines[0]["images"], 0.0)  # how long it took is not known: it is not in the middle
        pairs = zip(lines, lines[1:], strict=False)
        return watched, [first, *((b["images"] - a["images"], b["time"] - a["time"]) for a, b in pairs)]
