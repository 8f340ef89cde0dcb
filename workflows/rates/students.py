"""Students beside each other, each in every way that it can be run: forward from tiles to answers, and forward with backward.

Called by benchmark.py (`--stages student`). Whole students: backbone, decoder, np and hv heads. Everything is in one process;
all candidates take turns. Compiling is not counted, it comes before the first round (and takes a minute for each on a CPU).
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csat.errors import ConfigError
from csat.export.onnx import export_onnx
from csat.model.cost import count_cost
from csat.model.student import Student, StudentConfig
from csat.precision import BFLOAT16, FLOAT32
from csat.prediction.answers import ModelAnswers
from csat.prediction.onnx_answers import OnnxAnswers
from csat.responses import Kind, ResponseSpec, Symmetry
from workflows.rates.config import BenchmarkConfig
from workflows.rates.spread import cell, summary, times
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

RESPONSES = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
)
ONNX = "onnxruntime"
COMPILED_FORMS = 8  # of a student: two precisions, with gradients and without, and what a first try makes of sizes
# Way → precision, channels last in memory, compiled.
WAYS: dict[str, tuple[str, bool, bool]] = {
    "float32": (FLOAT32, True, False),
    "float32, channels first": (FLOAT32, False, False),
    "bfloat16": (BFLOAT16, True, False),
    "float32, compiled": (FLOAT32, True, True),
    "bfloat16, compiled": (BFLOAT16, True, True),
}
QUICK_WAYS = ("float32", "bfloat16", ONNX)
FORWARD, TRAINING = "forward", "training"


def measure_students(config: BenchmarkConfig) -> dict[str, Any]:
    """Student → its cost, and for forward and training: way → tiles/s.

    Raises:
        ConfigError: a way that there is not.
    """
    ways = config.ways or ([*QUICK_WAYS] if config.quick else [*WAYS, ONNX])
    if unknown := [way for way in ways if way not in (*WAYS, ONNX)]:
        raise ConfigError(f"ways: there is no {', '.join(unknown)}; there are: {', '.join([*WAYS, ONNX])}")
    shape = (config.batch_size, config.tile_px, config.tile_px, 3)
    tiles = np.random.default_rng(config.seed).integers(0, 256, shape, dtype=np.uint8)
    candidates: dict[tuple[str, str, str], Callable[[], object]] = {}
    # All of them are one function to the compiler, which else gives up on the later ones and runs them as they are.
    torch.compiler.config.recompile_limit = COMPILED_FORMS * len(config.students)
    costs = {}
    with scratch_folder("csat-bench-") as scratch:
        for name in config.students:
            torch.manual_seed(config.seed)
            student = Student(StudentConfig(backbone=name), RESPONSES)
            costs[name] = count_cost(student, (1, 3, config.tile_px, config.tile_px))
            for way in ways:
                candidates |= {(name, *key): run for key, run in _candidates(student, way, tiles, config, scratch).items()}
        rates = _take_turns(candidates, config)
    figures: dict[str, Any] = {name: {**costs[name], FORWARD: {}, TRAINING: {}} for name in config.students}
    for (name, way, what), values in rates.items():
        figures[name][what][way] = summary(values)
    title = (
        f"student: {config.tile_px} px, batch {config.batch_size}, {torch.get_num_threads()} threads, {config.device}, tiles/s"
    )
    _print(title, config.students, costs, ways, rates)
    return figures


def _candidates(
    student: Student, way: str, tiles: np.ndarray, config: BenchmarkConfig, scratch: Path
) -> dict[tuple[str, str], Callable[[], object]]:
    """(way, what) → what is timed."""
    if way == ONNX:
        path = scratch / f"{student.config.backbone}.onnx"
        export_onnx(ModelAnswers(copy.deepcopy(student).eval(), tile_px=config.tile_px), path)
        session = OnnxAnswers(str(path), device=config.device, threads=torch.get_num_threads())
        return {(way, FORWARD): lambda: session.answer(tiles)}
    precision, channels_last, is_compiled = WAYS[way]

    def built() -> Student:
        made = Student(StudentConfig(backbone=student.config.backbone, channels_last=channels_last), RESPONSES)
        made.load_state_dict(student.state_dict())
        made.to(config.device)
        if is_compiled:
            made.compile()
        return made

    answers = ModelAnswers(built().eval(), tile_px=config.tile_px, device=config.device, precision=precision)
    trained = built().train()
    images = torch.rand(config.batch_size, 3, config.tile_px, config.tile_px, device=config.device)
    return {
        (way, FORWARD): lambda: answers.answer(tiles),
        (way, TRAINING): lambda: _train(trained, images, precision),
    }


def _train(student: Student, images: torch.Tensor, precision: str) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == BFLOAT16):
        predictions = student(images)
    sum(prediction.float().square().mean() for prediction in predictions.values()).backward()
    student.zero_grad(set_to_none=True)


def _take_turns(
    candidates: dict[tuple[str, str, str], Callable[[], object]], config: BenchmarkConfig
) -> dict[tuple[str, str, str], list[float]]:
    rates: dict[tuple[str, str, str], list[float]] = {key: [] for key in candidates}
    for round_index in range(config.rounds + 1):  # the first one compiles and warms
        for key, run in candidates.items():
            started = time.perf_counter()
            run()
            if config.device == "cuda":
                torch.cuda.synchronize()
            if round_index:
                rates[key].append(config.batch_size / (time.perf_counter() - started))
    return rates


def _print(
    title: str,
    students: list[str],
    costs: dict[str, dict[str, float]],
    ways: list[str],
    rates: dict[tuple[str, str, str], list[float]],
) -> None:
    lines = [f"\n{title}", f"  {'':26}{'forward':32}forward and backward"]
    for name in students:
        cost = costs[name]
        lines.append(f"  {name} ({cost['params'] / 1e6:.2f} M parameters, {cost['macs'] / 1e9:.2f} GMAC)")
        first = {what: rates.get((name, ways[0], what), []) for what in (FORWARD, TRAINING)}
        for way in ways:
            cells = []
            for what in (FORWARD, TRAINING):
                values = rates.get((name, way, what), [])
                beside = times(values, first[what]) if values and first[what] else ""
                cells.append(f"{cell(values):24}{beside:8}")
            lines.append(f"    {way:24}{''.join(cells)}".rstrip())
    output.result("\n".join(lines), title=title)
