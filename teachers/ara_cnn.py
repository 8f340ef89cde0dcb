"""ARA-CNN (Raczkowski et al. 2019, doi 10.1038/s41598-019-50587-1): a small classifier of tissue, whose weights are free.

274,704 weights, for the eight classes of NCT-CRC-HE (Kather et al. 2018, without its background) or of Kather et al. 2016:

| response | kind | shape per tile | |
|---|---|---|---|
| `logits` | logits | `[classes]` | of the main head |
| `features` | features | `[64]` | the pooled last map, from which the main head reads |

Both with symmetry `none`: nothing in the network makes a turned tile answer alike. The second head (`aux`) served training: it
is loaded and never asked. In the paper dropout stays on and several answers are averaged; here one answer is given without.

The network sees 128 px. A tile of any edge is resized to that (bilinear, with antialiasing), since what counts is the tissue
that it shows: the training tiles are 112 um wide (NCT-CRC: 224 px at 0.5 um/px), or 74 um (Kather 2016: 150 px at 0.495).
So the resolution that this teacher wants follows from `tile_px`.

It is a weak teacher off its own data: NCT-CRC's tiles were normalised by Macenko's method, and on raw tiles of other
laboratories it drifts to tumour, debris and mucus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from teachers.contract import Teacher, select_responses, sha256_of, weights_file
from teachers.torch_teacher import Precision, TorchTeacher
from teachers.weights import load_strictly, read_state_dict

NAME = "ara_cnn"
NET_PX = 128  # edge of what the network sees
# Classes, as the weights' files name them → width of the tiles that they were trained on, um.
FIELD_UM = {
    ("TUM", "STR", "NORM", "LYM", "DEB", "MUC", "ADI", "MUS"): 224 * 0.5,
    ("TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA", "ADIPOSE", "EMPTY"): 150 * 0.495,
}


@dataclass(frozen=True, kw_only=True)
class AraCnnOptions:
    """How it runs; what it is stands in its file."""

    tile_px: int = 224  # edge of the tiles that it will get, px: their resolution follows from it
    classes: tuple[str, ...] | None = None  # in the order of its answers; null: as its file says
    field_um: float | None = None  # width of the tissue that it was trained to see, um; null: known by the classes
    precision: Precision = "best"  # best, float32 or bfloat16 (autocast): see docs/teachers.md
    micro_batch: int | None = None  # tiles on the device at once; null: as many as suit it

    def __post_init__(self):
        if self.tile_px < 1 or (self.field_um is not None and not self.field_um > 0):
            raise ConfigError(f"ara_cnn: tile_px {self.tile_px} and field_um {self.field_um} must be above 0")


class AraCnn(nn.Module):
    """The network, as published: eight convolutions of 64 channels, seven of them residual, two heads.

    Args:
        num_classes: Of both heads.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        kernels = [(3, 7), *[(64, 3)] * 7]
        self.conv = nn.ModuleList(
            nn.Conv2d(channels, 64, kernel, stride=4 if kernel == 7 else 1, padding=0 if kernel == 7 else 1)
            for channels, kernel in kernels
        )
        self.bn = nn.ModuleList(nn.BatchNorm2d(64, eps=1e-3) for _ in kernels)
        self.fc, self.fc_aux = nn.Linear(64, 32), nn.Linear(64, 32)
        self.main, self.aux = nn.Linear(32, num_classes), nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float `[B, 3, 128, 128]` in [0, 1] → features `[B, 64]`, logits `[B, classes]` of the main head."""
        x = F.pad(images, (1, 2, 1, 2))  # left, right, top, bottom: "same" of a kernel of 7 with stride 4
        x = F.max_pool2d(_leaky(self.bn[0](self.conv[0](x))), 2)
        x = F.avg_pool2d(self._steps(x, 1, 5), 2)
        features = F.avg_pool2d(self._steps(x, 5, 8), 2).mean((2, 3))
        return features, self.main(_leaky(self.fc(features)))

    def _steps(self, x: Tensor, first: int, end: int) -> Tensor:
        for index in range(first, end):
            x = x + _leaky(self.bn[index](self.conv[index](x)))
        return x


class AraCnnTeacher(TorchTeacher):
    """The loaded network. See the module's text for what it answers."""

    def __init__(self, net: AraCnn, spec: TeacherSpec, *, device: str, precision: Precision, micro_batch: int | None):
        super().__init__(spec, device=device, precision=precision, micro_batch=micro_batch)
        self.net = net.eval().to(self.device, memory_format=torch.channels_last)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        if images.shape[-1] != NET_PX:
            images = F.interpolate(images, size=(NET_PX, NET_PX), mode="bilinear", antialias=True)
        features, logits = self.net(images / 255)
        said = {"logits": logits, "features": features}
        return {response.name: said[response.name] for response in self.spec.responses}


def load(options: AraCnnOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load the network; see `teachers.registry.load_teacher`.

    Raises:
        ConfigError: classes that nobody names, or others than the weights have.
        TeacherError: weights that do not fit.
    """
    expected = "the network's tensors (conv.0.weight, …, main.bias), safetensors or a state_dict"
    with weights_file(weights, teacher=NAME, expected=expected) as path:
        state, about, sha256 = read_state_dict(path, teacher=NAME), _metadata(path), sha256_of(path)
        classes = options.classes or tuple(filter(None, about.get("classes", "").split(",")))
        if not classes:
            raise ConfigError(f"ara_cnn: {path} does not name its classes: give them, in order, as the option classes")
        net = AraCnn(len(classes))
        # Counters of batches, of which the published files have none: nothing here reads them.
        counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("num_batches_tracked")}
        hint = f"Its classes are taken to be {', '.join(classes)}"
        load_strictly(net, {**counters, **state}, teacher=NAME, path=path, hint=hint)
    of_tile = {"stride_px": None, "symmetry": Symmetry.NONE}
    responses = (
        ResponseSpec(name="logits", kind=Kind.LOGITS, channels=len(classes), channel_names=classes, **of_tile),
        ResponseSpec(name="features", kind=Kind.FEATURES, channels=64, **of_tile),
    )
    field_um = options.field_um or FIELD_UM.get(classes)
    spec = TeacherSpec(
        name=NAME,
        responses=select_responses(responses, wanted, teacher=NAME),
        mpp=None if field_um is None else field_um / options.tile_px,
        tile_px=(options.tile_px,),
        weights_sha256=sha256,
        licence=about.get("licence", "unknown"),
        source=about.get("origin", str(weights)),
    )
    return AraCnnTeacher(net, spec, device=device, precision=options.precision, micro_batch=options.micro_batch)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def _metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing of any other."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}
