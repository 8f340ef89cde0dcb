"""HoVer-Net as a teacher (Graham et al., Medical Image Analysis 2019): where nuclei are, their extent, their types.

Responses, each over the tile less the network's margin (46 px on each side in fast mode, 95 px in original), at the tile's
own resolution:

| name | kind | channels |
|---|---|---|
| `np` | probability | 1: P(nucleus), the second of the network's two softmaxed channels |
| `hv` | regression | 2: horizontal, vertical distance to the nucleus' centre, -1 to 1 over its extent |
| `tp` | probability | one per type, background first; absent where the weights have no such branch |

`csat/instances.py` turns them into single nuclei.

Weights: the published checkpoints, in both forms that go round (the authors' release with its `desc` key, TIAToolbox's
flat copies), strictly; your own training runs of the same network. Not downloaded here: their licences differ (see
`PUBLISHED`) and follow the student.

Cost, at 256 px in fast mode: 149 GMAC per tile, 9.4 with `width` 0.25. The encoder takes 57% of it at width 1 and each
branch 14%, so what is not wanted is not computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from csat import nuclei
from csat.errors import ConfigError, TeacherError
from csat.model.networks.hovernet import MARGIN_PX, SMALLEST_PX, HoVerNet, Mode
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.words import some
from teachers.contract import Teacher, select_responses, sha256_of, sha256_of_settings, weights_file
from teachers.torch_teacher import Precision, TorchTeacher
from teachers.weights import load_strictly, read_state_dict

NAME = "hovernet"
RANDOM_WEIGHTS_VERSION = 1  # raise when a seed starts to give other random weights
LARGEST_PX = 1024  # of the tile sizes that the spec lists; a larger tile would only need more memory
EXPECTED = (
    "a HoVer-Net checkpoint: hovernet_*_tf2pytorch.tar of github.com/vqdang/hover_net, TIAToolbox's hovernet_*.pth, or "
    "your own; for a dry run without weights, set the option random_weights"
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known about a published checkpoint. Verify the licence at its source before you release a student."""

    mode: Mode
    licence: str
    types: tuple[str, ...] = ()  # channel names of tp, background first; empty: no such branch


# The data set that a checkpoint was trained on → what it is. Its name is part of the published files' names.
PUBLISHED = {
    "pannuke": Published(
        mode="fast",
        licence="CC BY-NC-SA 4.0 (PanNuke)",
        types=("background", *nuclei.PANNUKE),
    ),
    "monusac": Published(
        mode="fast",
        licence="CC BY-NC-SA 4.0 (MoNuSAC)",
        types=("background", *nuclei.MONUSAC),
    ),
    # The order of the authors' label files; TIAToolbox 2.1 lists epithelial first and other last.
    "consep": Published(
        mode="original",
        licence="Apache-2.0 (CoNSeP)",
        types=("background", *nuclei.CONSEP),
    ),
    "kumar": Published(mode="original", licence="CC BY-NC-SA 4.0 (Kumar)"),
    "cpm17": Published(mode="original", licence="unknown (CPM17)"),
}


@dataclass(frozen=True, kw_only=True)
class HoverNetOptions:
    """Which HoVer-Net, and how it runs. `mode` and `num_types` must agree with the weights; the error says what they are."""

    mode: Mode = "fast"  # "fast" (PanNuke, MoNuSAC) or "original" (CoNSeP, Kumar, CPM17)
    num_types: int | None = 6  # channels of tp, background included; null: weights without that branch (Kumar, CPM17)
    trained_on: str | None = None  # key of PUBLISHED, for licence and type names; null: going by the file's name
    licence: str | None = None  # of your own weights; null: the published one's, else "unknown"
    width: float = 1.0  # fraction of the published channels; the published weights need 1
    mpp: float = 0.25  # micrometres per pixel that the weights were trained at
    precision: Precision = "best"  # best, float32 or bfloat16 (autocast): see docs/teachers.md
    micro_batch: int | None = None  # tiles on the device at once; null: as many as suit it
    compile: bool = False  # torch.compile the net: for a GPU and many tiles; a CPU takes minutes for it and gains nothing
    random_weights: bool = False  # no weights at all: for tests and dry runs, its answers mean nothing
    seed: int = 0  # of the random weights

    def __post_init__(self):
        if self.trained_on is not None and self.trained_on not in PUBLISHED:
            raise ConfigError(f"hovernet's trained_on is one of {', '.join(PUBLISHED)}, or null, not {self.trained_on!r}")


class HoverNetTeacher(TorchTeacher):
    """A loaded HoVer-Net. See the module's text for what it answers."""

    suits = MappingProxyType({"cpu": 1, "cuda": 8})  # one by one 1.25 times as many as in eights (256 px, EPYC, one core)

    def __init__(
        self,
        net: HoVerNet,
        spec: TeacherSpec,
        *,
        device: str,
        precision: Precision,
        micro_batch: int | None,
        compiles: bool = False,
    ):
        super().__init__(spec, device=device, precision=precision, micro_batch=micro_batch)
        self.net = net.eval().to(self.device, memory_format=torch.channels_last)
        if compiles:
            self.net.compile()  # by the first batch that it answers, and once more when another size comes

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.net(images, branches=[response.name for response in self.spec.responses])
        return {name: _as_response(name, output.float()) for name, output in outputs.items()}


def load(options: HoverNetOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load HoVer-Net; see `teachers.registry.load_teacher`.

    Raises:
        ConfigError: options that no network fits, or weights together with `random_weights`.
        TeacherError: the weights are of another mode, number of types or width, or of another network.
    """
    if options.random_weights:
        if weights:
            raise ConfigError(f"hovernet: both weights ({weights}) and the option random_weights were given: choose one")
        net, name = _random_net(options), ""
        sha256, source = sha256_of_settings(options, version=RANDOM_WEIGHTS_VERSION), f"random weights, seed {options.seed}"
    else:
        with weights_file(weights, teacher=NAME, expected=EXPECTED) as path:
            net = load_checkpoint(path, mode=options.mode, num_types=options.num_types, width=options.width)
            sha256, name = sha256_of(path), path.name
        source = str(weights)
    published = _published(options, name)
    spec = TeacherSpec(
        name=NAME,
        responses=select_responses(_responses(net, published.types if published else ()), wanted, teacher=NAME),
        mpp=options.mpp,
        tile_px=tuple(range(SMALLEST_PX[net.mode], LARGEST_PX + 1, 8)),
        weights_sha256=sha256,
        licence=_licence(options, published),
        source=source,
    )
    how = {"precision": options.precision, "micro_batch": options.micro_batch, "compiles": options.compile}
    return HoverNetTeacher(net, spec, device=device, **how)


def load_checkpoint(path: Path, *, mode: Mode = "fast", num_types: int | None = 6, width: float = 1.0) -> HoVerNet:
    """The network with a checkpoint's weights, strictly: every tensor's name and shape.

    Raises:
        TeacherError: naming the option to change where the checkpoint is a HoVer-Net of another kind.
    """
    state = read_state_dict(path, teacher=NAME)
    net = HoVerNet(mode=mode, num_types=num_types, width=width)
    found = _kind_of(state, path)
    asked = {"mode": mode, "num_types": num_types, "conv0": net.conv0[0].out_channels}
    if found != asked:
        changes = {key: found[key] for key in ("mode", "num_types") if found[key] != asked[key]}
        if found["conv0"] != asked["conv0"]:
            changes["width"] = found["conv0"] / 64
        to_set = ", ".join(f"{key}={'null' if value is None else value}" for key, value in changes.items())
        raise TeacherError(
            f"teacher {NAME!r}: {path.name} is a HoVer-Net in {_in_words(**found)}; the options ask for "
            f"{_in_words(**asked)}. Set the teacher's options {to_set}, or choose another checkpoint"
        )
    load_strictly(net, state, teacher=NAME, path=path, hint="Expected " + EXPECTED)
    return net


def _kind_of(state: Mapping[str, Tensor], path: Path) -> dict[str, str | int | None]:
    """Mode, number of types and first width of a checkpoint, read off three shapes."""
    kernel_of, first = state.get("decoder.np.u3.conva.weight"), state.get("conv0./.weight")
    modes = {3: "fast", 5: "original"}
    if kernel_of is None or first is None or kernel_of.ndim != 4 or kernel_of.shape[-1] not in modes:
        raise TeacherError(
            f"teacher {NAME!r}: {path.name} is not a HoVer-Net checkpoint: its {len(state)} tensors begin with "
            f"{some(state, 3)}. Expected {EXPECTED}"
        )
    types = state.get("decoder.tp.u0.conv.weight")
    return {
        "mode": modes[kernel_of.shape[-1]],
        "num_types": None if types is None else types.shape[0],
        "conv0": first.shape[0],
    }


def _in_words(mode: str, num_types: int | None, conv0: int) -> str:
    types = "without types" if num_types is None else f"with {num_types} types"
    return f"mode {mode} {types}" + ("" if conv0 == 64 else f", narrowed to {conv0 / 64:g} of the published width")


def _random_net(options: HoverNetOptions) -> HoVerNet:
    with torch.random.fork_rng(devices=[]):  # whoever loads a teacher keeps their own random state
        torch.manual_seed(options.seed)
        return HoVerNet(mode=options.mode, num_types=options.num_types, width=options.width)


def _published(options: HoverNetOptions, file_name: str) -> Published | None:
    named = [PUBLISHED[name] for name in PUBLISHED if name == options.trained_on]
    named = named or [PUBLISHED[name] for name in PUBLISHED if name in file_name.lower()]
    if len(named) != 1:
        return None
    mode, num_types = named[0].mode, len(named[0].types) or None
    # CoNSeP's was published without types too.
    if options.trained_on and (options.mode != mode or options.num_types not in (None, num_types)):
        raise ConfigError(
            f"hovernet: the weights published for {options.trained_on} are mode {mode} with num_types {num_types}, and the "
            f"options say {options.mode} with {options.num_types}: leave trained_on out for your own weights"
        )
    return named[0]


def _licence(options: HoverNetOptions, published: Published | None) -> str:
    if options.licence:
        return options.licence
    if options.random_weights:
        return "none (random weights)"
    if published is None:
        return "unknown"
    return published.licence + ("" if options.trained_on else ", going by the file's name: verify")


def _responses(net: HoVerNet, types: tuple[str, ...]) -> list[ResponseSpec]:
    crop_px = MARGIN_PX[net.mode]
    responses = [
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=crop_px, channel_names=("nucleus",)),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=crop_px, symmetry=Symmetry.HV),
    ]
    if net.num_types is not None:
        names = types if len(types) == net.num_types else ()
        responses.append(
            ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=net.num_types, crop_px=crop_px, channel_names=names)
        )
    return responses


def _as_response(name: str, output: Tensor) -> Tensor:
    if name == "np":
        return output.softmax(dim=1)[:, 1:]
    return output.softmax(dim=1) if name == "tp" else output
