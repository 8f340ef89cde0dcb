"""The student: any timm backbone, the dense decoder, and one head per response; and its folder on disk.

A student's folder holds `student.safetensors` (everything), `backbone.safetensors` (the backbone alone, under the names of
`timm.create_model(backbone, num_classes=0)`, which loads it strictly) and `config.json`, written last.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csat.errors import ConfigError
from csat.model.backbones import create_backbone, layers_of
from csat.model.contract import BACKBONE, DECODER, HEADS, PartedModel
from csat.model.feature_maps import find_size_px, first_line, levels_of, pooled_channels, probe, to_stride, without_trace
from csat.model.networks.heads import DenseDecoder, DenseHead, GlobalHead
from csat.responses import Kind, ResponseSpec, Symmetry

FORMAT_VERSION = 1
PREDICTION_STRIDE_PX = 2  # of dense predictions: half the resolution resolves nuclei borders at a quarter of the cost


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What the student is made of."""

    backbone: str = "csat"  # any timm model with forward_intermediates: csat, csat_nano, resnet18, efficientnet_b0, …
    decoder_channels: int = 64  # width of the dense decoder
    downsample: int = 1  # the student sees the tile at 1/downsample of its pixels
    drop_path: float = 0.0  # stochastic depth of the backbone's last block, 0 to 1
    pretrained: bool = False  # start from timm's own weights (downloads them); csat has none
    grad_checkpointing: bool = False  # recompute the backbone's blocks in the backward pass: less memory, a third slower
    channels_last: bool = True  # memory layout; faster on CPU and on GPUs with tensor cores

    def __post_init__(self):
        if self.downsample < 1:
            raise ConfigError(f"student.downsample is a whole factor of at least 1, not {self.downsample}")
        if self.decoder_channels < 1:
            raise ConfigError(f"student.decoder_channels must be at least 1, not {self.decoder_channels}")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"student.drop_path must lie in [0, 1), not {self.drop_path}")


class Student(PartedModel):
    """Backbone, decoder and heads. Parameters that no head reaches are frozen, so DDP needs no search for unused ones.

    Attributes:
        config: As given.
        responses: As given; `heads` has one head for each, under its name.
        last_map: Names of the dense features that are the backbone's last map.
        stride_px: Coarsest stride in use. Images are padded to multiples of it, and predictions cut back.
        step_px: The student's image edges must be multiples of it: the coarsest stride of its dense predictions.
        mean, std: Normalisation of the backbone, `[1, 3, 1, 1]`, for images in [0, 1].
    """

    def __init__(self, config: StudentConfig, responses: Sequence[ResponseSpec], *, last_map: Sequence[str] = ()):
        """
        Args:
            config: What it is made of.
            responses: What it predicts.
            last_map: Names of dense features that are not predicted by the decoder but are the backbone's last map, at its own
                stride; through a 1x1 convolution where its channels are not the response's.

        Raises:
            ConfigError: a backbone that timm does not have, that gives no feature maps, or runs at no size.
        """
        super().__init__()
        self.config = config
        self.downsample = config.downsample
        self.backbone = create_backbone(
            config.backbone,
            pretrained=config.pretrained,
            drop_path=config.drop_path,
            grad_checkpointing=config.grad_checkpointing,
        )
        data = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data.get("mean", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.get("std", (0.5, 0.5, 0.5))).view(1, 3, 1, 1))
        self._levels = levels_of(self.backbone)  # stride → index, finest first
        self.stride_px = max(self._levels)
        self._size_px = find_size_px(self.backbone, self._levels, name=config.backbone)
        last, maps = probe(self.backbone, self._levels, self._size_px)
        in_channels = [x.shape[1] for x in maps]
        self.finest_channels, self.last_channels = in_channels[0], in_channels[-1]
        self.pooled_channels = pooled_channels(self.backbone, last)
        self.decoder = DenseDecoder(in_channels, [*self._levels], config.decoder_channels)
        self.reset_heads(responses, last_map=last_map)

    def reset_heads(self, responses: Sequence[ResponseSpec], *, last_map: Sequence[str] = ()) -> None:
        """Fresh heads for other responses, over the same backbone and decoder: how a student moves to its next task.

        Every parameter trains again, except those that none of the new heads reaches.
        """
        for spec in responses:
            if "." in spec.name or not spec.name:
                raise ConfigError(f"response {spec.name!r}: a head's name is not empty and has no dot")
        names = [spec.name for spec in responses]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a student needs at least one response, and their names must differ; got {names}")
        self.responses, self.last_map = tuple(responses), tuple(last_map)
        device = self.mean.device
        self.heads = nn.ModuleDict({spec.name: self._make_head(spec) for spec in responses}).to(device)
        self._find_needs()
        if self.config.channels_last:
            self.to(memory_format=torch.channels_last)
        self._freeze_unused()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw predictions for every response.

        Args:
            images: Float `[B, 3, H, W]` in [0, 1], already downsampled; H and W multiples of `step_px`. Where they are no
                multiples of `stride_px` (HoVer-Net's 270 px), the last rows and columns are repeated until they are.

        Returns:
            Name → prediction. Dense ones cover the whole image, `[B, C, H/2, W/2]`; dense features, with their hundreds of
            channels, lie at the power of two nearest below their own stride instead, and those of `last_map` at `stride_px`.
            Global ones `[B, C]`. A probability with
            one channel is a logit for a sigmoid, one with several channels and `LOGITS` are logits for a softmax; all else
            are values as they are.
        """
        features, decoded, pooled, is_padded = self._run(images)
        predictions = {}
        for spec in self.responses:
            source = features[-1] if spec.name in self.last_map else decoded if spec.is_dense else pooled
            predictions[spec.name] = self.heads[spec.name](source)
        if is_padded:
            height, width = images.shape[2:]
            for spec in filter(lambda spec: spec.is_dense, self.responses):
                stride_px = self.prediction_stride_px(spec)
                predictions[spec.name] = predictions[spec.name][..., : height // stride_px, : width // stride_px]
        return predictions

    @property
    def tapped_channels(self) -> tuple[int, int]:
        """Of the two maps that `tap` gives."""
        return self.finest_channels, self.decoder.channels

    def tap(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One map of the encoder, one of the decoder, and the prediction of the only head, for method coco.

        Args:
            images: As `forward` takes them; multiples of `stride_px`, since nothing is cut back here.

        Returns:
            The backbone's finest map in use and the decoder's last, both at the decoder's stride (4 px for most backbones),
            and the dense prediction as `forward` gives it.
        """
        features, decoded, _, is_padded = self._run(images)
        if is_padded or len(self.responses) != 1 or decoded is None:
            names = ", ".join(spec.name for spec in self.responses)
            raise ConfigError(
                f"tapped maps are of a student with one dense head and images of multiples of {self.stride_px} px; this one "
                f"answers {names} and was given {images.shape[2]} x {images.shape[3]} px"
            )
        return features[0], decoded, self.heads[self.responses[0].name](decoded)

    def _run(self, images: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None, bool]:
        """Maps of the backbone, the decoder's and the pooled last one where a head needs them, and whether it was padded."""
        height, width = images.shape[2:]
        if height % self.step_px or width % self.step_px:
            raise ConfigError(
                f"student {self.config.backbone!r} takes images whose edges are multiples of {self.step_px} px, "
                f"not {height} x {width} px"
            )
        x = (images - self.mean) / self.std
        below, beside = -height % self.stride_px, -width % self.stride_px
        if below or beside:
            x = F.pad(x, (0, beside, 0, below), mode="replicate")
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        last, features = self._run_backbone(x)
        features = [to_stride(each, x.shape[2:], stride) for each, stride in zip(features, self._levels, strict=True)]
        decoded = self.decoder(features) if self._needs_decoder else None
        pooled = self.backbone.forward_head(last, pre_logits=True) if self._needs_global else None
        return features, decoded, pooled, bool(below or beside)

    def check_tile(self, tile_px: int) -> None:
        """Refuse a tile size that this student cannot take.

        Raises:
            ConfigError: with the nearest sizes that would do.
        """
        factor = self.config.downsample
        step_px = factor * self.step_px
        if tile_px <= 0 or tile_px % step_px:
            near_px = [size for size in (tile_px // step_px * step_px, (tile_px // step_px + 1) * step_px) if size > 0]
            raise ConfigError(
                f"student {self.config.backbone!r} takes tiles whose edge is a multiple of {step_px} px "
                f"(stride {self.step_px} x downsample {factor}), not {tile_px} px: set data.tile_px to "
                f"{' or '.join(map(str, near_px))}"
            )
        image_px = tile_px // factor
        try:
            with without_trace(self):
                predictions = self(torch.zeros(1, 3, image_px, image_px, device=self.mean.device))
            self._check_predictions(predictions, image_px)
        except (
            Exception
        ) as error:  # timm's models raise what they like at a size that they do not take: the cause stays attached
            raise ConfigError(
                f"backbone {self.config.backbone!r} refuses images of {image_px} px ({first_line(error)}): set "
                f"data.tile_px {self._size_px * factor}, or choose a backbone that takes images of any size"
            ) from error

    def prediction_stride_px(self, spec: ResponseSpec) -> int:
        """Pixels of the student's image per cell of a dense prediction."""
        if spec.name in self.last_map:
            return self.stride_px
        stride_px = PREDICTION_STRIDE_PX
        if spec.kind == Kind.FEATURES:  # hundreds of channels: at the teacher's own resolution, not finer
            stride_px = max(stride_px, spec.stride_px // self.config.downsample)
        return min(2 ** (stride_px.bit_length() - 1), self.stride_px)

    def parts(self) -> dict[str, list[nn.Module]]:
        decoder = [self.decoder] if self._needs_decoder else []
        return {BACKBONE: [self.backbone], DECODER: decoder, HEADS: list(self.heads.values())}

    def backbone_layers(self) -> dict[str, int]:
        return {f"backbone.{name}": layer for name, layer in layers_of(self.backbone, self.config.backbone).items()}

    def add_last_map(self, name: str) -> ResponseSpec:
        """Answer the backbone's last map as well, as it is: what a classifier teaches in resolution-based distillation.

        Returns:
            What it answers under that name.
        """
        stride_px = self.stride_px * self.config.downsample
        spec = ResponseSpec(
            name=name, kind=Kind.FEATURES, channels=self.last_channels, stride_px=stride_px, symmetry=Symmetry.NONE
        )
        self.responses, self.last_map = (*self.responses, spec), (*self.last_map, name)
        self.heads[name] = self._make_head(spec)
        self._find_needs()
        return spec

    def backbone_state_dict(self) -> dict[str, Tensor]:
        """The backbone's weights under the names of `timm.create_model(config.backbone, num_classes=0)`."""
        return self.backbone.state_dict()

    def _find_needs(self) -> None:
        """Which parts the responses need, and the step of the images."""
        self._needs_decoder = any(spec.is_dense and spec.name not in self.last_map for spec in self.responses)
        self._needs_global = any(not spec.is_dense for spec in self.responses)
        self.step_px = max((self.prediction_stride_px(spec) for spec in self.responses if spec.is_dense), default=1)

    def _make_head(self, spec: ResponseSpec) -> nn.Module:
        if spec.name in self.last_map:
            is_same = spec.channels == self.last_channels
            return nn.Identity() if is_same else nn.Conv2d(self.last_channels, spec.channels, 1)
        if not spec.is_dense:
            if self.pooled_channels is None:
                raise ConfigError(
                    f"backbone {self.config.backbone!r} does not pool its features to one vector per image, which the "
                    f"response {spec.name!r} needs: choose another backbone"
                )
            return GlobalHead(self.pooled_channels, spec.channels)
        finest_px, wanted_px = self.decoder.stride_px, self.prediction_stride_px(spec)
        shrink, upscale = max(1, wanted_px // finest_px), max(1, finest_px // wanted_px)
        return DenseHead(self.decoder.channels, spec.channels, upscale=upscale, shrink=shrink)

    def _run_backbone(self, x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """The input of the backbone's head (None where no head needs it), and the feature maps, finest first."""
        if self._needs_global:
            return self.backbone.forward_intermediates(x, indices=[*self._levels.values()])
        return None, self.backbone.forward_intermediates(
            x, indices=[*self._levels.values()], stop_early=True, intermediates_only=True
        )

    def _check_predictions(self, predictions: dict[str, Tensor], image_px: int) -> None:
        for spec in filter(lambda spec: spec.is_dense, self.responses):
            cells, came = image_px // self.prediction_stride_px(spec), predictions[spec.name].shape[2:]
            if came != (cells, cells):
                raise ValueError(f"{spec.name} has {came[0]} x {came[1]} cells, where {cells} x {cells} were promised")

    def _freeze_unused(self) -> None:
        """`requires_grad` for exactly the parameters that a backward pass from all predictions reaches."""
        self.requires_grad_(True)
        x = torch.zeros(1, 3, self._size_px, self._size_px, device=self.mean.device)
        named = dict(self.named_parameters())
        with without_trace(self), torch.enable_grad():
            total = sum(prediction.float().sum() for prediction in self(x).values())
            grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        for parameter, grad in zip(named.values(), grads, strict=True):
            parameter.requires_grad_(grad is not None)


def save_student(student: Student, folder: Path, metadata: dict) -> None:
    """Write a student's folder; `config.json` comes last and marks it complete.

    Args:
        student: On any device.
        folder: Made if it is not there.
        metadata: Anything that JSON can hold: mpp, tile_px, the teacher, licences.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for file, state in (("student", student.state_dict()), ("backbone", student.backbone_state_dict())):
        # Plain contiguous copies: safetensors refuses other strides and tensors that share memory.
        tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        save_file(tensors, folder / f"{file}.safetensors.tmp", metadata={"backbone": student.config.backbone})
        os.replace(folder / f"{file}.safetensors.tmp", folder / f"{file}.safetensors")
    config = {
        "format": FORMAT_VERSION,
        "backbone": student.config.backbone,
        "student": asdict(student.config),
        "responses": [asdict(spec) for spec in student.responses],
        "last_map": list(student.last_map),
        "mean": student.mean.flatten().tolist(),
        "std": student.std.flatten().tolist(),
        "stride_px": student.stride_px,
        "metadata": metadata,
    }
    (folder / "config.json.tmp").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(folder / "config.json.tmp", folder / "config.json")


def load_student(folder: Path, *, responses: Sequence[ResponseSpec] | None = None, **changes) -> Student:
    """A student from its folder, in evaluation mode, on the CPU.

    Args:
        folder: As `save_student` wrote it.
        responses: Fresh heads for these, over the stored backbone and decoder; None for the stored heads.
        **changes: Fields of `StudentConfig` to change, of those that leave the weights' shapes alone: drop_path, downsample,
            grad_checkpointing, channels_last. `backbone` and `decoder_channels` may be given, and must be the stored ones.

    Raises:
        ConfigError: not a student's folder, an incomplete one, weights of another backbone, a change that cannot be made.
    """
    stored = read_student_config(folder)
    for name, value in changes.items():
        if name not in stored["student"]:
            raise ConfigError(f"no student setting {name!r}; there are: {', '.join(stored['student'])}")
        if name in ("backbone", "decoder_channels") and value != stored["student"][name]:
            raise ConfigError(
                f"{folder} holds a student with {name} {stored['student'][name]!r}, not {value!r}: drop the setting"
            )
    config = replace(StudentConfig(**stored["student"]), **{**changes, "pretrained": False})
    specs = [spec_from_json(spec) for spec in stored["responses"]]
    student = Student(config, specs, last_map=stored.get("last_map", ()))
    path = Path(folder) / "student.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the student's weights {path}: {error}") from error
    _load_strictly(student, state, path, config.backbone)
    if responses is not None:
        student.reset_heads(responses)
    return student.eval()


def read_student_config(folder: Path) -> dict:
    """`config.json` of a student's folder: keys backbone, student, responses, mean, std, stride_px, metadata.

    Raises:
        ConfigError: not a student's folder.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        found = sorted(p.name for p in Path(folder).iterdir())[:8] if Path(folder).is_dir() else "no such folder"
        raise ConfigError(f"{folder} is not a student's folder: it needs config.json and student.safetensors; found: {found}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT_VERSION or "student" not in config:
        raise ConfigError(f"{path} does not describe a student of format {FORMAT_VERSION}: was it written by another program?")
    return config


def _load_strictly(student: Student, state: dict[str, Tensor], path: Path, backbone: str) -> None:
    own = student.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or unexpected or misshaped:
        raise ConfigError(
            f"{path} does not fit a {backbone!r} student: {len(missing)} weights missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}, {len(misshaped)} misshaped {misshaped[:3]}: is its config.json from another folder?"
        )
    student.load_state_dict(state)


def spec_from_json(values: dict) -> ResponseSpec:
    """A response as `asdict` and JSON left it."""
    enums = {"kind": Kind(values["kind"]), "symmetry": Symmetry(values["symmetry"])}
    return ResponseSpec(**{**values, **enums, "channel_names": tuple(values["channel_names"])})
