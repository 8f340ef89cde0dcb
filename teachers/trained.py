"""A model that finetune.py trained as a teacher: its run folder, or the `exported/` folder in it, local or in a bucket; or one
that comes with the package, by its name.

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
| segmentation, of any but unet | `encoder`, `decoder` | features | for method coco; only where `taps` asks for them |

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
from torch import Tensor

from csat.errors import TeacherError
from csat.licences import licence_of
from csat.losses.attention import attention_maps, normalise_jointly
from csat.model.contract import DECODED, ENCODED, FEATURES, Model
from csat.model.files import exported_folder, load_model, local_copy, read_model_config, weights_name
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.shipped import is_shipped
from teachers.contract import Teacher, select_responses, sha256_of
from teachers.torch_teacher import Precision, TorchTeacher

NAME = "run"
TAPS = (ENCODED, DECODED)
CAMS = {"cam_at_plus": "at+", "cam_at": "at"}  # response → form of the attention maps
TYPES = "tp"  # the response whose classes are answered as probabilities
LARGEST_PX = 1024  # of the tile sizes that the spec lists; a larger tile would only need more memory


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a fine-tuned model runs. What it is stands in its folder."""

    precision: Precision = "best"  # best, float32 or bfloat16 (autocast): see docs/teachers.md
    micro_batch: int | None = None  # tiles on the device at once; null: as many as suit it
    features: bool = False  # answer the backbone's last feature map too, which method resolution learns
    any_size: bool = False  # answer images of any size (convolutional nets), also where it was trained at one tile size
    cam: bool = False  # answer the attention maps of a classifier on a layer too, which method attention learns
    taps: bool = False  # answer the two tapped maps of a network for segmentation too, which method coco learns


class TrainedTeacher(TorchTeacher):
    """A loaded model. See the module's text for what it answers."""

    def __init__(self, model: Model, spec: TeacherSpec, *, device: str, precision: Precision, micro_batch: int | None):
        super().__init__(spec, device=device, precision=precision, micro_batch=micro_batch)
        wanted = [response.name for response in spec.responses]
        self.forms = {name: form for name, form in CAMS.items() if name in wanted}
        heads = {head.name: head for head in model.responses}
        if not self.forms:  # attention maps follow from the logits, whether these are wanted or not
            model.responses = tuple(heads[name] for name in wanted if name in heads)  # it computes no others
        self.layers = [name for name in model.layers if name in wanted and name not in heads]
        self.model = model.to(self.device, memory_format=torch.channels_last)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        images = self.model.see(images)
        if self.forms:
            answers = self._answer_with_attention(images)
        else:
            maps, predictions = self.model.tap(images, self.layers)
            answers = maps | predictions
        return {response.name: _as_response(response, answers[response.name].float()) for response in self.spec.responses}

    def _answer_with_attention(self, images: Tensor) -> dict[str, Tensor]:
        """Attention maps follow from gradients, which inference mode has none of."""
        with torch.inference_mode(False), torch.enable_grad():
            maps, predictions = self.model.tap(images.clone(), [FEATURES])  # a copy that gradients may be taken by
            features, (logits,) = maps[FEATURES], predictions.values()
            cams = {name: normalise_jointly(attention_maps(features, logits, form)) for name, form in self.forms.items()}
        return {name: answer.detach() for name, answer in (maps | predictions | cams).items()}


def load(options: RunOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load a fine-tuned model; see `teachers.registry.load_teacher`.

    Args:
        weights: Run folder of finetune.py, an exported folder, or the name of a model that comes with the package.

    Raises:
        ConfigError: no such folder, an unfinished run, weights that do not fit.
        TeacherError: no folder was given, it holds a student of pretrain.py, which imitates a teacher, or a model without a
            last feature map was asked for one.
    """
    if not weights:
        raise TeacherError(f"teacher {NAME!r} is a run folder of finetune.py: say which with teacher=FOLDER")
    folder = exported_folder(weights)
    config = read_model_config(folder)
    metadata = config.get("metadata") or {}
    if metadata.get("task") is None and metadata.get("teacher"):
        raise TeacherError(
            f"{weights} holds a student of pretrain.py, which imitates the teacher {metadata['teacher'].get('name')!r}: name "
            "that teacher, or fine-tune the student first (finetune.py with model.init run and model.from_run) and give that "
            "run"
        )
    with local_copy(folder) as copy:
        model, sha256 = load_model(str(copy)), sha256_of(copy / weights_name(config))
    spec = TeacherSpec(
        name=NAME,
        responses=select_responses(_responses(model, options, weights), wanted, teacher=NAME),
        mpp=metadata.get("mpp"),
        tile_px=_tile_sizes(model, metadata.get("tile_px"), any_size=options.any_size),
        weights_sha256=sha256,
        licence=licence_of(metadata),
        source=_source(weights if is_shipped(weights) else folder, config, metadata),
    )
    return TrainedTeacher(model, spec, device=device, precision=options.precision, micro_batch=options.micro_batch)


def _responses(model: Model, options: RunOptions, weights: str) -> list[ResponseSpec]:
    """Everything that the model answers, and those of its layers that are asked for."""
    responses = [_response(model, head) for head in model.responses]
    names = {response.name for response in responses}
    verdict = model.layers.get(FEATURES)
    holds = f"teacher {NAME!r}: {weights} holds a {type(model).__name__}"
    if options.cam and not (verdict and verdict.has_verdict):
        raise TeacherError(
            f"{holds}, and cam are maps of a classifier on a named layer: leave the option out, or train one by finetune.py "
            "with model.options.layer"
        )
    if options.taps and not model.layers.keys() >= set(TAPS):
        raise TeacherError(
            f"{holds}, and taps are two maps of a segmentation by fanet, mobile_unet, enet, erfnet or a timm backbone: leave "
            "the option out, or choose a run of one of these"
        )
    if options.features and (FEATURES not in model.layers or FEATURES in names):
        raise TeacherError(
            f"{holds} that answers {', '.join(names)}, and features is the last map of a timm backbone: leave the option out, "
            "or choose a run of such a model"
        )
    layers = [*(TAPS if options.taps else ()), *((FEATURES,) if options.features else ())]
    responses += [_of_layer(model, name, kind=Kind.FEATURES, channels=model.layers[name].channels) for name in layers]
    if options.cam:
        head = model.responses[0]
        classes = {"channels": head.channels, "channel_names": head.channel_names}
        responses += [replace(_of_layer(model, FEATURES, kind=Kind.ATTENTION, **classes), name=name) for name in CAMS]
    return responses


def _of_layer(model: Model, layer: str, **more: Any) -> ResponseSpec:
    """What is answered with a cell for each cell of a layer; how it moves with its tile is not known."""
    return ResponseSpec(name=layer, stride_px=model.layers[layer].stride_px, symmetry=Symmetry.NONE, **more)


def _response(model: Model, head: ResponseSpec) -> ResponseSpec:
    """What is answered in a head's place: its kind, and the resolution that it has in the model."""
    kind = Kind.PROBABILITY if head.name == TYPES and head.kind == Kind.LOGITS else head.kind
    if not head.is_dense:
        return replace(head, kind=kind)
    return replace(head, kind=kind, stride_px=model.downsample * model.prediction_stride_px(head))


def _as_response(response: ResponseSpec, prediction: Tensor) -> Tensor:
    """A raw prediction over the whole tile as the response says it: activated, without the margin."""
    if response.is_dense and response.crop_px:
        inner = slice(response.crop_px // response.stride_px, -(response.crop_px // response.stride_px))
        prediction = prediction[..., inner, inner]
    if response.kind != Kind.PROBABILITY:
        return prediction
    return prediction.sigmoid() if response.channels == 1 else prediction.softmax(dim=1)


def _tile_sizes(model: Model, trained_px: int | None, *, any_size: bool) -> tuple[int, ...] | None:
    """Tile edges that the model takes. What it says of a tile as a whole holds for the size that it was trained at: that it
    does so for others is for the user to know (`any_size`)."""
    is_dense = all(head.is_dense for head in model.responses)
    if trained_px is not None and (model.has_one_size or not (is_dense or any_size)):
        return (trained_px,)
    return model.tile_sizes(LARGEST_PX)


def _source(folder: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    model = config.get("model") or config.get("backbone")
    images = f" on {metadata['source']}" if metadata.get("source") else ""
    return f"{folder}: {model} trained{images}"
