"""A model that finetune.py trained as a teacher: its run folder, or the `exported/` folder in it, local or in a bucket.

What it answers follows from the task that it was trained for:

| task | response | kind | values |
|---|---|---|---|
| nuclei | `np` | probability | 1 channel: P(nucleus) |
| | `hv` | regression | 2: horizontal, vertical distance to the nucleus' centre |
| | `tp` | probability | one per type, background first; absent where the nuclei have no types |
| segmentation | `mask` | logits | one per class, by cell |
| classification | `label` | logits | one per class, for the tile as a whole |
| any, of a timm backbone | `features` | features | the backbone's last map; only where the option `features` asks for it |
| classification by a layer (`model.options.layer`) | `features` | features | that layer's map, where `features` asks for it |
| | `cam_at_plus`, `cam_at` | attention | a map per class in [0, 1], for method attention; where `cam` asks for them |
| segmentation, of fanet, enet, … | `encoder`, `decoder` | features | for method coco; only where `taps` asks for them |

`np`, `hv` and `tp` are those of the teacher `hovernet`, so that one takes the other's place. Classes come as logits, not as
probabilities: a softened comparison (a temperature above 1) needs what float16 probabilities round away, and a student that
learned them has the very heads that finetune.py looks for. All of them move with their tile under flips and rotations, but for
`features`, `encoder`, `decoder` and the attention maps: the pool turns the tile before a model that answers those sees it.

Masks and nuclei come at the model's own resolution: a timm backbone's at every second pixel of the image that it sees, the
others' at the tile's. HoVer-Net's margin is cut away; `encoder` and `decoder` have a cell for every four pixels.

Weights are read from safetensors only. The licence is that of the images it learned from, and of the weights that it started
from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from csat.errors import TeacherError
from csat.export.folder import exported_folder, load_exported, local_copy, read_exported_config, weights_name
from csat.losses.attention import attention_maps, normalise_jointly
from csat.model.hovernet_model import HoverNetModel
from csat.model.networks.hovernet import SMALLEST_PX
from csat.model.segmentation_nets import NETWORKS, TAP_STRIDE_PX, SegmentationNet
from csat.model.student import Student
from csat.model.tapped import TappedClassifier
from csat.model.unet import UNetModel
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.storage import files
from csat.views.grid import downsample
from teachers.contract import Teacher, select_responses, sha256_of
from teachers.torch_teacher import Precision, TorchTeacher

NAME = "run"
FEATURES = "features"
TAPS = ("encoder", "decoder")
CAMS = {"cam_at_plus": "at+", "cam_at": "at"}  # response → form of the attention maps
TYPES = "tp"  # the response whose classes are answered as probabilities
LARGEST_PX = 1024  # of the tile sizes that the spec lists; a larger tile would only need more memory


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a fine-tuned model runs. What it is stands in its folder."""

    precision: Precision = "float32"  # or "bfloat16": autocast
    micro_batch: int = 16  # tiles on the device at once
    features: bool = False  # answer the backbone's last feature map too, which method resolution learns
    any_size: bool = False  # answer images of any size (convolutional nets), also where it was trained at one tile size
    cam: bool = False  # answer the attention maps of a classifier on a layer too, which method attention learns
    taps: bool = False  # answer the two tapped maps of a network for segmentation too, which method coco learns


class TrainedTeacher(TorchTeacher):
    """A loaded model. See the module's text for what it answers."""

    def __init__(self, model: nn.Module, spec: TeacherSpec, *, device: str, precision: Precision, micro_batch: int):
        super().__init__(spec, device=device, precision=precision, micro_batch=micro_batch)
        heads = {head.name: head for head in model.responses}
        self.heads = tuple(heads.values())
        model.responses = tuple(heads[r.name] for r in spec.responses if r.name in heads)  # it computes no others
        self.model = model.to(self.device, memory_format=torch.channels_last)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        images = downsample(images / 255, self.model.downsample)
        if isinstance(self.model, TappedClassifier):
            return self._answer_by_layer(images)
        if any(response.name in TAPS for response in self.spec.responses):
            *taps, logits = self.model.tap(images)
            predictions = dict(zip(TAPS, taps, strict=True)) | {head.name: logits for head in self.heads}
        else:
            predictions = self.model(images)
        return {response.name: _as_response(response, predictions[response.name].float()) for response in self.spec.responses}

    def _answer_by_layer(self, images: Tensor) -> dict[str, Tensor]:
        """Logits, map and attention maps. The latter follow from gradients, which inference mode has none of."""
        wanted = {response.name for response in self.spec.responses}
        forms = {name: form for name, form in CAMS.items() if name in wanted}
        with torch.inference_mode(False), torch.set_grad_enabled(bool(forms)):
            features, logits = self.model.tap(images.clone())  # a copy that gradients may be taken by
            cams = {name: normalise_jointly(attention_maps(features, logits, form)) for name, form in forms.items()}
        answers = {FEATURES: features.detach().float(), self.heads[0].name: logits.detach().float(), **cams}
        return {name: answers[name] for name in (response.name for response in self.spec.responses)}


def load(options: RunOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load a fine-tuned model; see `teachers.registry.load_teacher`.

    Args:
        weights: Run folder of finetune.py, or an exported folder.

    Raises:
        ConfigError: no such folder, an unfinished run, weights that do not fit.
        TeacherError: no folder was given, it holds a student of pretrain.py, which imitates a teacher, or a model without a
            last feature map was asked for one.
    """
    if not weights:
        raise TeacherError(f"teacher {NAME!r} is a run folder of finetune.py: say which with teacher=FOLDER")
    folder = exported_folder(files.normalise(weights))
    config = read_exported_config(folder)
    metadata = config.get("metadata") or {}
    if metadata.get("task") is None and metadata.get("teacher"):
        raise TeacherError(
            f"{weights} holds a student of pretrain.py, which imitates the teacher {metadata['teacher'].get('name')!r}: name "
            "that teacher, or fine-tune the student first (finetune.py with model.init run and model.from_run) and give that "
            "run"
        )
    with local_copy(folder) as copy:
        model, sha256 = load_exported(str(copy)), sha256_of(copy / weights_name(config))
    spec = TeacherSpec(
        name=NAME,
        responses=select_responses(_responses(model, options, weights), wanted, teacher=NAME),
        mpp=metadata.get("mpp"),
        tile_px=_tile_sizes(model, metadata.get("tile_px"), any_size=options.any_size),
        weights_sha256=sha256,
        licence="; ".join(_licences(metadata)) or "unknown",
        source=_source(folder, config, metadata),
    )
    return TrainedTeacher(model, spec, device=device, precision=options.precision, micro_batch=options.micro_batch)


def _responses(model: nn.Module, options: RunOptions, weights: str) -> list[ResponseSpec]:
    """Everything that the model answers; it answers its last map too from here on, where that is asked for."""
    responses = [_response(model, head) for head in model.responses]
    if isinstance(model, TappedClassifier):
        return responses + _of_layer(model, options, weights)
    if options.cam:
        raise TeacherError(
            f"teacher {NAME!r}: {weights} holds a {type(model).__name__}, and cam are maps of a classifier on a named "
            "layer: leave the option out, or train one by finetune.py with model.options.layer"
        )
    if options.taps:
        responses += _taps(model, weights)
    if not options.features:
        return responses
    if not isinstance(model, Student) or any(response.name == FEATURES for response in responses):
        names = ", ".join(response.name for response in responses)
        raise TeacherError(
            f"teacher {NAME!r}: {weights} holds a {type(model).__name__} that answers {names}, and features is the last map "
            "of a timm backbone: leave the option out, or choose a run of such a model"
        )
    return [*responses, model.add_last_map(FEATURES)]


def _of_layer(model: TappedClassifier, options: RunOptions, weights: str) -> list[ResponseSpec]:
    if options.taps:
        raise TeacherError(
            f"teacher {NAME!r}: {weights} holds a classifier, and taps are maps of a segmentation: leave it out"
        )
    shape = {"stride_px": model.cell_px, "symmetry": Symmetry.NONE}
    responses = (
        [ResponseSpec(name=FEATURES, kind=Kind.FEATURES, channels=model.tap_channels, **shape)] if options.features else []
    )
    if options.cam:
        head = model.responses[0]
        shape |= {"channels": head.channels, "channel_names": head.channel_names}
        responses += [ResponseSpec(name=name, kind=Kind.ATTENTION, **shape) for name in CAMS]
    return responses


def _taps(model: nn.Module, weights: str) -> list[ResponseSpec]:
    if not isinstance(model, SegmentationNet):
        raise TeacherError(
            f"teacher {NAME!r}: {weights} holds a {type(model).__name__}, and taps are two maps of {', '.join(NETWORKS)}: "
            "leave the option out, or choose a run of one of these"
        )
    shape = {"channels": model.tap_channels, "stride_px": TAP_STRIDE_PX, "symmetry": Symmetry.NONE}
    return [ResponseSpec(name=name, kind=Kind.FEATURES, **shape) for name in TAPS]


def _response(model: nn.Module, head: ResponseSpec) -> ResponseSpec:
    """What is answered in a head's place: its kind, and the resolution that it has in the model."""
    kind = Kind.PROBABILITY if head.name == TYPES and head.kind == Kind.LOGITS else head.kind
    if not head.is_dense:
        return replace(head, kind=kind)
    own_stride_px = model.prediction_stride_px(head) if isinstance(model, Student) else 1
    return replace(head, kind=kind, stride_px=model.downsample * own_stride_px)


def _as_response(response: ResponseSpec, prediction: Tensor) -> Tensor:
    """A raw prediction over the whole tile as the response says it: activated, without the margin."""
    if response.is_dense and response.crop_px:
        inner = slice(response.crop_px // response.stride_px, -(response.crop_px // response.stride_px))
        prediction = prediction[..., inner, inner]
    if response.kind != Kind.PROBABILITY:
        return prediction
    return prediction.sigmoid() if response.channels == 1 else prediction.softmax(dim=1)


def _tile_sizes(model: nn.Module, trained_px: int | None, *, any_size: bool) -> tuple[int, ...] | None:
    """Tile edges that the model takes. What it says of a tile as a whole holds for the size that it was trained at: that it
    does so for others is for the user to know (`any_size`)."""
    if isinstance(model, HoverNetModel):
        return tuple(range(SMALLEST_PX[model.mode], LARGEST_PX + 1, 8))
    is_dense = all(head.is_dense for head in model.responses)
    has_one_size = isinstance(model, Student) and model.backbone.pretrained_cfg.get("fixed_input_size")
    if trained_px is not None and (has_one_size or not (is_dense or any_size)):
        return (trained_px,)
    if isinstance(model, UNetModel | SegmentationNet):
        return tuple(range(model.step_px, LARGEST_PX + 1, model.step_px))
    return None


def _licences(metadata: Mapping[str, Any]) -> list[str]:
    """Of the images, then of whatever the weights started from: a run, its teacher; each once."""
    found = [metadata["licence"]] if metadata.get("licence") else []
    for name in ("teacher", "started_from"):
        if isinstance(before := metadata.get(name), Mapping):
            found += _licences(before)
    return list(dict.fromkeys(found))


def _source(folder: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    model = config.get("model") or config.get("backbone")
    images = f" on {metadata['source']}" if metadata.get("source") else ""
    return f"{folder}: {model} trained{images}"
