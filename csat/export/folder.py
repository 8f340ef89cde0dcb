"""A trained model as files that others can use: safetensors and config.json; of a student, the backbone with timm's keys too.

| model | files |
|---|---|
| student (csat, any timm backbone) | `student.safetensors`, `backbone.safetensors` (timm's keys), `config.json` |
| hovernet | `hovernet.safetensors` (the published tensor names: teacher hovernet loads it), `config.json` |
| unet, fanet, mobile_unet, enet, erfnet, a classifier on a layer | `model.safetensors`, `config.json` |
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.methods.contract import Method
from csat.model.hovernet_model import HoverNetModel
from csat.model.segmentation_nets import NETWORKS, SegmentationNet
from csat.model.student import Student, load_student, save_student, spec_from_json
from csat.model.tapped import TappedClassifier
from csat.model.unet import UNetModel
from csat.responses import ResponseSpec
from csat.storage import files
from csat.words import some

FORMAT_VERSION = 1
WEIGHTS = {"hovernet": "hovernet.safetensors", **dict.fromkeys(("unet", "tapped", *NETWORKS), "model.safetensors")}
STUDENT_WEIGHTS = "student.safetensors"


def export_student(method: Method, state: dict[str, Tensor], folder: str, metadata: dict[str, Any]) -> None:
    """Write the student of a method.

    Args:
        method: Built as for training; its student takes the weights.
        state: Of the method, as in a checkpoint (averaged weights where there are any).
        folder: URI.
        metadata: JSON-ready; goes into config.json: what it saw and whom it learned from.
    """
    method.load_state_dict(state)
    export_model(method.part("student").eval(), folder, metadata)


def export_model(model: nn.Module, folder: str, metadata: dict[str, Any]) -> None:
    """Write a model's folder.

    Args:
        model: A Student, HoverNetModel, UNetModel, SegmentationNet or TappedClassifier.
        folder: URI; config.json comes last and marks it complete.
        metadata: JSON-ready.
    """
    with tempfile.TemporaryDirectory(prefix="csat-export-") as scratch:
        if isinstance(model, Student):
            save_student(model, Path(scratch), metadata)
        else:
            _save_other(model, Path(scratch), metadata)
        files.make_dir(folder)
        files.delete(files.join(folder, "config.json"))  # of an earlier export: until all is written there is no model
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == "config.json"):
            files.write_bytes(files.join(folder, path.name), path.read_bytes())


def load_exported(folder: str) -> nn.Module:
    """The model in an exported folder, local or remote, on the CPU, in evaluation mode.

    Raises:
        ConfigError: the folder holds no exported model.
    """
    with local_copy(folder) as copy:
        return _load(copy)


@contextmanager
def local_copy(folder: str) -> Iterator[Path]:
    """A local folder with the config.json and the weights of an exported folder: that folder itself, or a temporary copy.

    Raises:
        ConfigError: the folder holds no exported model, or one whose weights are missing.
    """
    config = read_exported_config(folder)
    if files.is_local(folder):
        yield files.local_path(folder)
        return
    weights = files.join(folder, weights_name(config))
    if files.info(weights) is None:
        raise ConfigError(f"the exported model {folder} is incomplete: there is no {weights_name(config)} in it")
    with tempfile.TemporaryDirectory(prefix="csat-export-") as scratch:
        files.download(weights, Path(scratch) / weights_name(config))
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        yield Path(scratch)


def read_exported_config(folder: str) -> dict[str, Any]:
    """`config.json` of an exported folder. Raises ConfigError where there is none, or one of another program."""
    uri = files.join(folder, "config.json")
    if not files.exists(uri):
        raise ConfigError(f"{folder} is no exported model: there is no config.json in it ({_found_in(folder)})")
    try:
        config = json.loads(files.read_bytes(uri))
    except ValueError as error:
        raise ConfigError(f"{uri} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT_VERSION or "responses" not in config:
        raise ConfigError(f"{uri} does not describe a model of format {FORMAT_VERSION}: was it written by another program?")
    return config


def weights_name(config: dict[str, Any]) -> str:
    """Name of the weights file of an exported model."""
    return WEIGHTS.get(config.get("model"), STUDENT_WEIGHTS)


def exported_folder(run: str) -> str:
    """The exported model of a run folder, or the folder itself where it is an exported one.

    Raises:
        ConfigError: neither; says whether a run is there that has not finished.
    """
    inside = files.join(run, "exported")
    if files.exists(files.join(inside, "config.json")):
        return inside
    if files.exists(files.join(run, "config.json")):
        return run
    if files.exists(files.join(run, "config.yaml")):
        raise ConfigError(f"the run {run} has not exported its model yet: let it finish (the same command resumes it)")
    raise ConfigError(
        f"{run} is neither a run folder nor an exported model: expected exported/config.json or config.json in it "
        f"({_found_in(run)})"
    )


def _found_in(folder: str, most: int = 8) -> str:
    if not files.is_dir(folder):
        return "there is no such folder"
    return f"it holds {some(map(files.base_name, files.list_dir(folder)), most)}"


def _save_other(model: nn.Module, folder: Path, metadata: dict[str, Any]) -> None:
    if isinstance(model, HoverNetModel):
        kind, options, module = "hovernet", {"mode": model.mode, "width": model.width}, model.net
    elif isinstance(model, UNetModel):
        kind, options, module = "unet", {"width": model.width, "depth": model.depth}, model
    elif isinstance(model, SegmentationNet):
        options = {name: value for name, value in model.options.items() if name != "pretrained"}  # its weights are in the file
        kind, module = model.network, model
    elif isinstance(model, TappedClassifier):
        kind, module = "tapped", model
        options = {"backbone": model.name} | {name: getattr(model, name) for name in ("layer", "downsample", "upsample")}
    else:
        raise TypeError(f"no form to export {type(model).__name__} in")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS[kind])
    config = {
        "format": FORMAT_VERSION,
        "model": kind,
        "options": options,
        "responses": [asdict(spec) for spec in model.responses],
        "metadata": metadata,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _load(folder: Path) -> nn.Module:
    config = read_exported_config(str(folder))
    if "model" not in config:
        return load_student(folder)
    responses: Sequence[ResponseSpec] = [spec_from_json(spec) for spec in config["responses"]]
    networks = {name: partial(SegmentationNet, network=name) for name in NETWORKS}
    models = {"hovernet": HoverNetModel, "unet": UNetModel, "tapped": TappedClassifier, **networks}
    if config["model"] not in models:
        raise ConfigError(f"{folder} holds a model of kind {config['model']!r}; known are: student, {', '.join(models)}")
    with torch.random.fork_rng(devices=[]):
        model = models[config["model"]](responses, **config["options"])
    try:
        state = load_file(folder / WEIGHTS[config["model"]])
        (model.net if isinstance(model, HoverNetModel) else model).load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, ConfigError) as error:  # the last: a network says what is wrong with them
        raise ConfigError(f"cannot load the weights of {folder}: {error}") from error
    return model.eval()
