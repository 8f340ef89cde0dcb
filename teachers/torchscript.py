"""Your own model as a teacher: a TorchScript file and a small JSON that says what goes in and what comes out.

The JSON lies beside the file (`nuclei.pt` → `nuclei.json`), or where the option `spec` says:

    {
      "name": "my-nuclei",                      optional; the file's name
      "mpp": 0.25,                              micrometres per pixel it was trained at; null: any
      "tile_px": 256,                           the tile edge that it takes, or a list of those
      "normalisation": {"scale": 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
      "outputs": [
        {"name": "np", "kind": "probability", "channels": 1, "stride_px": 1, "crop_px": 46,
         "symmetry": "scalar", "activation": "sigmoid", "channel_names": ["nucleus"]}
      ],
      "licence": "Apache-2.0", "source": "trained by us"    optional
    }

The model gets float32 `[B, 3, tile_px, tile_px]`, RGB, `(pixel / scale - mean) / std`; 0 to 255 where `normalisation` is
absent. It returns one tensor, a tuple or list in the order of `outputs`, or a dict by their names. `stride_px` null is one
vector per tile; `activation` (none, sigmoid, softmax over the channels) is applied to what the model returns; `symmetry` is
"none" where absent: then the teacher sees every flipped tile itself. A dry run at load checks all of it.

Security: a TorchScript file is a program in torch's own small language. It cannot import Python or run a shell, which a
pickle can, but it can loop for ever or fill the memory, and torch's loader is no sandbox: load only files whose source you
trust.

PyTorch deprecates writing TorchScript (2.15 warns) and still loads it, which is all that is done here. A model that returns
finished instances (InstanSeg with its post-processing) is no teacher of dense maps: export it without.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from csat.errors import ConfigError, TeacherError
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.settings import Place
from csat.words import last_line
from teachers.contract import Teacher, select_responses, sha256_of, weights_file
from teachers.torch_teacher import TorchTeacher

NAME = "torchscript"
Activation = Literal["none", "sigmoid", "softmax"]
ACTIVATIONS = ("none", "sigmoid", "softmax")
TOP_KEYS = ("name", "mpp", "tile_px", "normalisation", "outputs", "licence", "source")
OUTPUT_KEYS = ("name", "kind", "channels", "stride_px", "crop_px", "symmetry", "activation", "channel_names")
TOLERANCE = 1e-3  # of probabilities in the dry run
REQUIRED = object()


@dataclass(frozen=True, kw_only=True)
class TorchScriptOptions:
    """How the user's model runs. What it is stands in its JSON."""

    spec: Place | None = None  # the JSON; null: beside the weights, with their name and .json
    micro_batch: int | None = None  # tiles on the device at once; null: as many as suit it


@dataclass(frozen=True, kw_only=True)
class Description:
    """A JSON, read and checked."""

    name: str
    mpp: float | None
    tile_px: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: tuple[ResponseSpec, ...]
    activations: tuple[Activation, ...]
    licence: str
    source: str


class TorchScriptTeacher(TorchTeacher):
    """A loaded TorchScript model with its description."""

    def __init__(
        self, net: torch.jit.ScriptModule, description: Description, spec: TeacherSpec, *, device: str, micro_batch: int | None
    ):
        super().__init__(spec, device=device, micro_batch=micro_batch)
        self.net = net.eval().to(self.device)
        self.description = description
        self.mean = description.scale * torch.tensor(description.mean, device=self.device).view(1, 3, 1, 1)
        self.std = description.scale * torch.tensor(description.std, device=self.device).view(1, 3, 1, 1)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.net(((images - self.mean) / self.std).contiguous())
        by_name = _by_name(outputs, self.description)
        wanted = {response.name for response in self.spec.responses}
        pairs = zip(self.description.outputs, self.description.activations, strict=True)
        return {spec.name: _activate(by_name[spec.name], how) for spec, how in pairs if spec.name in wanted}


def load(options: TorchScriptOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load a TorchScript file and its JSON, and try them on two tiles; see `teachers.registry.load_teacher`.

    Raises:
        ConfigError: the JSON, naming the key and what it should hold.
        TeacherError: not a TorchScript file, or a model that does not do what its JSON says.
    """
    expected = "a TorchScript file (torch.jit.save) with its JSON beside it"
    with weights_file(weights, teacher=NAME, expected=expected) as path:
        net, sha256 = _load_script(path), sha256_of(path)
    json_uri = options.spec or str(weights).rpartition(".")[0] + ".json"
    with weights_file(
        json_uri, teacher=NAME, expected="the JSON that describes the model (see teachers/torchscript.py)"
    ) as path:
        description = read_description(path)
    spec = TeacherSpec(
        name=description.name,
        responses=select_responses(description.outputs, wanted, teacher=description.name),
        mpp=description.mpp,
        tile_px=description.tile_px,
        weights_sha256=sha256,
        licence=description.licence,
        source=description.source or str(weights),
    )
    _dry_run(TorchScriptTeacher(net, description, spec, device="cpu", micro_batch=2))
    return TorchScriptTeacher(net, description, spec, device=device, micro_batch=options.micro_batch)


def read_description(path: Path) -> Description:
    """Read and check a JSON.

    Raises:
        ConfigError: naming the key, what was expected there and what was found.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    top = _Fields(content, TOP_KEYS, where=str(path))
    normalisation = _Fields(top.get("normalisation", dict, {}), ("scale", "mean", "std"), where=f"{path}: normalisation")
    tile_px = top.get("tile_px", (int, list), expected="a tile edge in pixels, or a list of those")
    sizes = tuple(tile_px) if isinstance(tile_px, list) else (tile_px,)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(f"{path}: tile_px is {tile_px!r}; expected a tile edge in pixels, or a list of those")
    outputs = [_read_output(item, f"{path}: outputs[{index}]") for index, item in enumerate(top.get("outputs", list))]
    names = [spec.name for spec, _ in outputs]
    if not outputs or len(set(names)) < len(names):
        raise ConfigError(f"{path}: outputs names {names}; expected at least one, each with its own name")
    mpp = top.get("mpp", (int, float, type(None)), expected="micrometres per pixel, or null")
    description = Description(
        name=top.get("name", str, path.stem),
        mpp=mpp if mpp is None else float(mpp),
        tile_px=sizes,
        scale=float(normalisation.get("scale", (int, float), 1)),
        mean=_three(normalisation, "mean", [0, 0, 0]),
        std=_three(normalisation, "std", [1, 1, 1]),
        outputs=tuple(spec for spec, _ in outputs),
        activations=tuple(activation for _, activation in outputs),
        licence=top.get("licence", str, "unknown"),
        source=top.get("source", str, ""),
    )
    if description.scale <= 0 or min(description.std) <= 0:
        raise ConfigError(
            f"{path}: normalisation divides by scale {description.scale} and std {description.std}: expected above 0"
        )
    for spec in description.outputs:
        for size in sizes:
            spec.shape(size)  # raises ConfigError with a tile size that would do
    return description


class _Fields:
    """A JSON object whose keys are all known, with typed access that names the key when it is wrong."""

    def __init__(self, content: Any, keys: Sequence[str], *, where: str):
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where} is {content!r}; expected an object with the keys {', '.join(keys)}")
        unknown = [key for key in content if key not in keys]
        if unknown:
            raise ConfigError(f"{where}: unknown key {', '.join(map(repr, unknown))}; expected some of: {', '.join(keys)}")
        self.content, self.where = content, where

    def get(self, key: str, types: type | tuple[type, ...], default: Any = REQUIRED, *, expected: str = "") -> Any:
        types = types if isinstance(types, tuple) else (types,)
        expected = expected or " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        value = self.content.get(key, default)
        if value is REQUIRED:
            raise ConfigError(f"{self.where}: the key {key!r} is missing; expected {expected}")
        if key in self.content and (not isinstance(value, types) or isinstance(value, bool)):  # a bool is an int to Python
            raise ConfigError(f"{self.where}: {key} is {value!r}; expected {expected}")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = REQUIRED) -> str:
        expected = f"one of {', '.join(choices)}"
        value = self.get(key, str, default, expected=expected)
        if value not in choices:
            raise ConfigError(f"{self.where}: {key} is {value!r}; expected {expected}")
        return value


def _read_output(content: Any, where: str) -> tuple[ResponseSpec, Activation]:
    fields = _Fields(content, OUTPUT_KEYS, where=where)
    channels, crop_px = fields.get("channels", int), fields.get("crop_px", int, 0)
    stride_px = fields.get("stride_px", (int, type(None)), expected="tile pixels per cell, or null for one vector per tile")
    if channels < 1 or crop_px < 0 or (stride_px is not None and stride_px < 1):
        raise ConfigError(
            f"{where}: channels {channels} and stride_px {stride_px} are at least 1, crop_px {crop_px} at least 0"
        )
    spec = ResponseSpec(
        name=fields.get("name", str),
        kind=Kind(fields.choice("kind", [kind.value for kind in Kind])),
        channels=channels,
        stride_px=stride_px,
        crop_px=crop_px,
        symmetry=Symmetry(fields.choice("symmetry", [symmetry.value for symmetry in Symmetry], Symmetry.NONE.value)),
        channel_names=tuple(fields.get("channel_names", list, [])),
    )
    return spec, fields.choice("activation", ACTIVATIONS, "none")


def _three(fields: _Fields, key: str, default: list[float]) -> tuple[float, ...]:
    values = fields.get(key, list, default, expected="three numbers (R, G, B)")
    if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise ConfigError(f"{fields.where}: {key} is {values!r}; expected three numbers (R, G, B)")
    return tuple(float(value) for value in values)


def _load_script(path: Path) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise TeacherError(
            f"teacher {NAME!r}: {path} is not a TorchScript file ({str(error).splitlines()[0]}). Expected "
            "torch.jit.trace(model, example).save(path); a state_dict (torch.save) needs its network: see the teachers "
            "hovernet and timm"
        ) from error


def _by_name(outputs: Any, description: Description) -> dict[str, Tensor]:
    names = [spec.name for spec in description.outputs]
    if isinstance(outputs, Tensor):
        outputs = [outputs]
    if isinstance(outputs, Mapping):
        found, fits = f"a dict of {', '.join(map(str, outputs))}", all(name in outputs for name in names)
    elif isinstance(outputs, tuple | list):
        found, fits = f"{len(outputs)} outputs", len(outputs) == len(names)
        outputs = dict(zip(names, outputs, strict=False))
    else:
        found, fits = f"a {type(outputs).__name__}", False
    if not fits:
        raise TeacherError(
            f"teacher {description.name!r}: the model returned {found}; its JSON names the outputs {', '.join(names)}"
        )
    return outputs


def _activate(values: Tensor, activation: Activation) -> Tensor:
    if activation == "softmax":
        return values.float().softmax(dim=1)
    return values.float().sigmoid() if activation == "sigmoid" else values


def _dry_run(teacher: TorchScriptTeacher) -> None:
    """Two tiles of noise at each size: shapes, finite values, probabilities that are probabilities."""
    name = teacher.spec.name
    generator = torch.Generator().manual_seed(0)
    for tile_px in teacher.description.tile_px:
        tiles = torch.randint(0, 256, (2, 3, tile_px, tile_px), generator=generator).float()
        try:
            with torch.inference_mode():
                answers = teacher.answer(tiles)
        except RuntimeError as error:
            raise TeacherError(
                f"teacher {name!r}: the model failed on float32 [2, 3, {tile_px}, {tile_px}] ({last_line(error)}). Check "
                "tile_px in its JSON, and that it was traced for any batch size and for RGB"
            ) from error
        for spec in teacher.spec.responses:
            expected, values = [2, *spec.shape(tile_px)], answers[spec.name]
            where = f"teacher {name!r}, output {spec.name!r}, tiles of {tile_px} px"
            if list(values.shape) != expected:
                raise TeacherError(
                    f"{where}: the model gave {list(values.shape)} and its JSON promises {expected}: correct channels, "
                    "stride_px or crop_px (or the order of outputs)"
                )
            if not values.isfinite().all():
                raise TeacherError(f"{where}: NaN or infinite values on a tile of noise: check the normalisation")
            if spec.kind == Kind.PROBABILITY:
                _check_probabilities(values, where)


def _check_probabilities(values: Tensor, where: str) -> None:
    low, high = values.min().item(), values.max().item()
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise TeacherError(
            f"{where}: a probability between {low:.3g} and {high:.3g}: set its activation to sigmoid or softmax, or its "
            "kind to logits or regression"
        )
    if values.shape[1] > 1 and (values.sum(dim=1) - 1).abs().max() > 10 * TOLERANCE:
        raise TeacherError(f"{where}: its channels do not sum to 1: set its activation to softmax, or split it into outputs")
