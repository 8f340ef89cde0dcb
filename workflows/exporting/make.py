"""All files of an export, in a local folder, each tried on real tiles before it stays."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csat.errors import ConfigError
from csat.export import onnx, openvino, quantised, torchscript
from csat.export.card import NAME as CARD
from csat.export.card import write_card
from csat.export.facts import Facts, Measured
from csat.model.cost import count_cost
from csat.model.files import CONFIG, save_model
from csat.prediction.answers import ModelAnswers
from csat.prediction.onnx_answers import OnnxAnswers
from csat.prediction.opening import open_answers
from csat.words import without_folders
from workflows.exporting.config import ExportConfig

logger = logging.getLogger("export")

MOST_HALF = 0.02  # by which a finished answer may differ in half precision
TIMM = "for timm: the backbone"
TIMM_WHOLE = "for timm: the whole classifier"


def make_files(
    folder: Path, config: ExportConfig, answers: ModelAnswers, facts: Facts, tiles: np.ndarray, where: str
) -> Measured:
    """Write them.

    Args:
        folder: Empty.
        answers: The model, on the CPU.
        tiles: uint8 `[N, tile_px, tile_px, 3]`: the first `num_tiles` for trying, all of them for calibrating.
        where: They are from, in words.

    Raises:
        ConfigError: a file that does not say what the model says.
    """
    tried = tiles[: config.num_tiles]
    if config.small:
        return _make_small(folder, config, answers, facts, tried, where)
    save_model(answers.model, str(folder), facts.metadata)
    described = json.loads((folder / CONFIG).read_text())
    told, left_out = _weights(folder, described), {}
    onnx.export_onnx(answers, folder / onnx.NAME)
    agreement = onnx.check_onnx(answers, folder / onnx.NAME, tried)
    told[onnx.NAME] = f"for onnxruntime: {agreement}, in batches of 1, 2 and 7"
    logger.info("%s: %s", onnx.NAME, agreement)
    if why := torchscript.why_no_bundle(answers, described):
        left_out[torchscript.NAME] = why
    else:
        difference = torchscript.export_torchscript(answers, folder / torchscript.NAME, tried)
        described = {"architecture": described.get("model", ""), **described, **torchscript.bundle_config(answers)}
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        told[torchscript.NAME] = f"for WSInfer and QuPath: logits; probabilities at most {difference:.1e} apart"
        logger.info("%s: probabilities at most %.1e apart", torchscript.NAME, difference)
    speeds = _speeds(folder, answers, tried, config.threads)
    for name in (quantised.INT8, quantised.FP16):
        _try_smaller(name, folder, config, answers, tiles, told, left_out, speeds)
    if config.openvino:
        name = openvino.NAME
        told[name] = openvino.convert(folder / onnx.NAME, folder, answers, tried)
        logger.info("%s: %s", name, told[name])
    told[CONFIG] = "what every reader has to know: timm's, WSInfer's and our own keys"
    found = {"speeds": speeds, "machine": _machine(config.threads), "files": told, "left_out": left_out}
    measured = Measured(**found, cost=_cost(answers), tiles=f"{len(tried)}, {where}")
    (folder / CARD).write_text(write_card(answers, Facts(**{**vars(facts), "config": described}), measured))
    return measured


def _make_small(
    folder: Path, config: ExportConfig, answers: ModelAnswers, facts: Facts, tried: np.ndarray, where: str
) -> Measured:
    """The weights in half precision, tried against those that they come from. Raises ConfigError: they say something else."""
    save_model(answers.model, str(folder), _without_folders(facts.metadata), is_small=True)
    described = json.loads((folder / CONFIG).read_text())
    halved = open_answers(str(folder), tile_px=answers.tile_px)
    pairs = zip(answers.answer(tried).values(), halved.answer(tried).values(), strict=True)
    difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    if not difference <= MOST_HALF:
        raise ConfigError(
            f"in half precision it says something else: up to {difference:.3g} apart on {len(tried)} tiles, {where}"
        )
    (name,) = [path.name for path in folder.iterdir() if path.name != CONFIG]
    told = {name: f"the weights in half precision: at most {difference:.1e} apart", CONFIG: "what a reader has to know"}
    batch = np.resize(tried, (quantised.SPEED_BATCH, *tried.shape[1:]))
    seconds = quantised.measure({"torch": lambda: halved.answer(batch)})["torch"]
    found = {"speeds": {f"torch, batch of {len(batch)}": len(batch) / seconds}, "machine": _machine(config.threads)}
    measured = Measured(**found, cost=_cost(answers), files=told, left_out={}, tiles=f"{len(tried)}, {where}")
    (folder / CARD).write_text(write_card(answers, Facts(**{**vars(facts), "config": described}), measured))
    return measured


def _without_folders(value: Any) -> Any:
    """Plain values in which a path of this machine is its last part: whoever gets the model has other folders."""
    if isinstance(value, Mapping):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return without_folders(value) if isinstance(value, str) else value


def _cost(answers: ModelAnswers) -> dict[str, float]:
    edge_px = answers.tile_px // answers.model.downsample
    return count_cost(answers.model, (1, 3, edge_px, edge_px))


def _weights(folder: Path, described: dict) -> dict[str, str]:
    """Name → what it is, of the files of the model itself."""
    whole = described.get("num_classes", 0) > 0
    known = {
        "model.safetensors": (TIMM_WHOLE if whole else TIMM) if "pretrained_cfg" in described else "all weights, of csat.load",
        "student.safetensors": "all weights, of csat.load",
        "hovernet.safetensors": "all weights, under the names of the published HoVer-Net",
    }
    names = sorted(path.name for path in folder.iterdir() if path.name != CONFIG)
    return {name: known.get(name, "the network, which timm does not have: import it first") for name in names}


def _try_smaller(
    name: str,
    folder: Path,
    config: ExportConfig,
    answers: ModelAnswers,
    tiles: np.ndarray,
    told: dict[str, str],
    left_out: dict[str, str],
    speeds: dict[str, float],
) -> None:
    """Write a smaller file if it was asked for, and keep it where it pays; say what was measured either way."""
    is_int8 = name == quantised.INT8
    if not (config.int8 if is_int8 else config.fp16):
        return
    source, path = folder / onnx.NAME, folder / name
    if is_int8:
        quantised.quantise(source, path, answers, tiles[: config.calibration_tiles])
    else:
        quantised.to_float16(source, path)
    device = "cpu" if is_int8 else config.device
    verdict = quantised.judge(source, path, answers, tiles[: config.num_tiles], device=device, threads=config.threads)
    logger.info("%s on %s: %s: %s", name, device, verdict, "kept" if verdict.is_kept else "not kept")
    if verdict.is_kept:
        told[name] = f"{verdict} (on {device})"
        speeds[f"{name}, batch of {quantised.SPEED_BATCH}"] = verdict.tiles_per_s
    else:
        path.unlink()
        left_out[name] = f"it does not pay on {device}: {verdict}"


def _speeds(folder: Path, answers: ModelAnswers, tiles: np.ndarray, threads: int | None) -> dict[str, float]:
    """Tiles per second of the model and of its ONNX file, from uint8 tiles to finished answers, in turns."""
    session = OnnxAnswers(str(folder / onnx.NAME), threads=threads)
    batch = np.resize(tiles, (quantised.SPEED_BATCH, *tiles.shape[1:]))
    seconds = quantised.measure({"torch": lambda: answers.answer(batch), "onnxruntime": lambda: session.answer(batch)})
    return {f"{name}, batch of {len(batch)}": len(batch) / value for name, value in seconds.items()}


def _machine(threads: int | None) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{cpu}, {threads or len(os.sched_getaffinity(0))} threads, torch {torch.__version__}"


def check_licences(reasons: list[str], *, accept: bool) -> None:
    """Refuse to write what a licence speaks against, unless the user has read it. Raises ConfigError with the reasons."""
    if reasons and not accept:
        raise ConfigError(
            f"licences stand against it: {'; '.join(reasons)}. Say accept_license=true to write the folder all the same: its "
            "card says so, and what you do with it is on you"
        )
