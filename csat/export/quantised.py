"""Smaller ONNX files: int8 and float16. Each is measured beside the float32 file, and kept where it pays and costs little.

int8 is quantised statically on real tiles (QDQ; unsigned activations and signed weights, which x86 computes fast):
convolutions and products with stored weights. Left in float32: the first convolution, the heads, the attention and the GRN of
CSAT, and products of two activations, whose ranges differ by orders of magnitude from one tile to the next.
"""

import logging
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from csat.export.onnx import INPUT, SCOPES, Agreement, compare, normalised
from csat.prediction.answers import ModelAnswers
from csat.prediction.onnx_answers import OnnxAnswers

INT8, FP16 = "model.int8.onnx", "model.fp16.onnx"
LEAST_SPEED = 1.1  # times the float32 file's
LEAST_DECISIONS = 0.99  # share of decisions that must stay as they were
SPEED_BATCH, ROUNDS = 8, 7
WEIGHTED = ("Conv", "MatMul", "Gemm")
LEFT_OUT = re.compile(r"heads?\b|attention|attn|grn|last_linear|classifier", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a smaller file costs and brings.

    Attributes:
        agreement: With the model, on real tiles.
        speed: Times the float32 file's tiles per second, on the same machine, in turns.
        tiles_per_s: Its own.
    """

    agreement: Agreement
    speed: float
    tiles_per_s: float

    @property
    def is_kept(self) -> bool:
        return self.speed >= LEAST_SPEED and self.agreement.decisions >= LEAST_DECISIONS

    def __str__(self) -> str:
        return f"{self.speed:.2f} times as fast as float32; {self.agreement.decisions:.2%} of decisions as before, values " + (
            f"{self.agreement.mean_difference:.1e} apart on average, at most {self.agreement.difference:.1e} "
            f"(to be kept: {LEAST_SPEED:g} times, {LEAST_DECISIONS:.0%})"
        )


def quantise(source: Path, path: Path, answers: ModelAnswers, tiles: np.ndarray) -> None:
    """Write the int8 file of a float32 file.

    Args:
        tiles: uint8 `[N, tile_px, tile_px, 3]`: real ones, by which ranges are found; 200 to 500 are enough.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Tiles(CalibrationDataReader):
        def __init__(self):
            self._left = _in_batches(normalised(answers, tiles).numpy())

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    prepared = path.with_suffix(".prepared.onnx")
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it recommends what has just been done
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # which the batch has no number for
        quantize_static(
            prepared,
            path,
            Tiles(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(WEIGHTED),
            nodes_to_exclude=left_in_float32(onnx.load(prepared)),
        )
    finally:
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)
    _keep_metadata(source, path)


def to_float16(source: Path, path: Path) -> None:
    """Write the float16 file of a float32 file; what goes in and comes out stays float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    seen: set[str] = set()  # onnxruntime 1.31 writes the cast of a value once for each node that needs it, under one name
    nodes = [node for node in model.graph.node if not (seen.issuperset(node.output) or seen.update(node.output))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    _keep_metadata(source, path)


def judge(
    source: Path, path: Path, answers: ModelAnswers, tiles: np.ndarray, *, device: str = "cpu", threads: int | None = None
) -> Verdict:
    """Measure a smaller file beside the float32 file, in turns."""
    sessions = {each: OnnxAnswers(str(each), device=device, threads=threads) for each in (source, path)}
    batch = np.resize(tiles, (SPEED_BATCH, *tiles.shape[1:]))
    seconds = measure({str(each): (lambda session=session: session.answer(batch)) for each, session in sessions.items()})
    before, after = (seconds[str(each)] for each in (source, path))
    return Verdict(agreement=compare(answers, sessions[path], tiles), speed=before / after, tiles_per_s=SPEED_BATCH / after)


def measure(candidates: dict) -> dict[str, float]:
    """Median seconds of each, called in turns after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(ROUNDS + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def left_in_float32(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are not quantised, see the head of this module."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    made_of_stored = {
        node.output[0] for node in model.graph.node if node.input and all(name in stored for name in node.input if name)
    }
    names, is_first = [], True
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        is_first_conv = is_first and node.op_type == "Conv"
        is_first = is_first and not is_first_conv
        has_weights = any(name in stored or name in made_of_stored for name in node.input[1:2])
        if is_first_conv or not has_weights or LEFT_OUT.search(_scope_of(node)):
            names.append(node.name)
    return names


def _scope_of(node: onnx.NodeProto) -> str:
    """Path of the module that a node was made of."""
    told = {entry.key: entry.value for entry in node.metadata_props}
    return told.get(SCOPES, f"{node.name} {' '.join(node.input)}")


def _keep_metadata(source: Path, path: Path) -> None:
    made, told = onnx.load(path), onnx.load(source, load_external_data=False).metadata_props
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, {entry.key: entry.value for entry in told})
    onnx.save(made, path)


def _in_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), SPEED_BATCH):
        yield images[start : start + SPEED_BATCH]
