"""Any timm or hub encoder as a teacher: ImageNet models, pathology foundation models, your own fine-tuned classifier.

Responses, chosen by `outputs`:

| name | kind | shape per tile | |
|---|---|---|---|
| `features` | features | `[C]` | the pooled embedding, before any classifier |
| `tokens` | features | `[C, n, n]` | the last feature grid |
| `logits` | logits | `[classes]` | where the weights have a classifier |

All with symmetry `none`: a mirrored grid of features is not the grid of the mirrored tile, so the teacher has to see the tile
as the student does.

The tile is normalised as the model's own configuration says. A transformer's tile is resized to the model's input edge
(whole: we do not crop its centre as timm's evaluation does, since the student learns from the whole tile); a convolutional
net takes it as it is. At 256 px tiles of 0.5 um/px, a 224 px model so sees 0.57 um/px: send 224 px tiles to avoid that.

Weights: a local file (safetensors, or torch with `weights_only`), or with `pretrained` the hub, or a folder in the hub's form
(`local-dir:FOLDER`). The pathology encoders of `ENCODERS` are built from the arguments listed there, so a downloaded file
loads on a cluster without internet. Untested here, for want of their gated weights: that those arguments fit them; the strict
load says so if not. For any other encoder the option `arguments` says what `timm.create_model` is given besides its name, such
as `{mlp_layer: SwiGLUPacked, act_layer: SiLU, reg_tokens: 4}`. LayerScale (`init_values`) needs no telling: its weights are
there or not, and what they start from is overwritten.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from csat.errors import ConfigError, TeacherError
from csat.model.networks.norms import guard_norms
from csat.precision import BFLOAT16
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.settings import PlaceAfter
from teachers.contract import Teacher, select_responses, sha256_of, sha256_of_settings, weights_file
from teachers.pathology_encoders import Encoder, Pool, create_arguments, find_encoder, with_layers
from teachers.torch_teacher import Precision, TorchTeacher
from teachers.weights import load_strictly, read_state_dict, sha256_of_tensors

NAME = "timm"
RANDOM_WEIGHTS_VERSION = 1  # raise when a seed starts to give other random weights
Output = Literal["features", "tokens", "logits"]
HUB, FOLDER = ("hf-hub:", "hf_hub:"), "local-dir:"  # prefixes of models that are not timm's own
LAYER_SCALE, ANY_SCALE = ".ls1.gamma", 1e-5  # its weights' name; what they start from, which loading overwrites


@dataclass(frozen=True, kw_only=True)
class TimmOptions:
    """Which encoder, what it answers, how it runs."""

    model: Annotated[str, PlaceAfter(FOLDER)]  # timm's name ("resnet50.a1_in1k"), "hf-hub:owner/name" or "local-dir:folder"
    arguments: dict[str, Any] = field(
        default_factory=dict
    )  # more of timm.create_model, layers by name: {mlp_layer: SwiGLUPacked}
    outputs: tuple[Output, ...] = ("features",)  # any of features, tokens, logits
    pool: Pool | None = None  # how tokens become features; null: as the encoder's authors say, else as timm's model does
    tile_px: int | None = None  # edge of the tiles that it will get: needed for tokens of resized tiles; null: the input edge
    img_size: int | None = None  # edge that the model works at, px; null: its own
    num_classes: int | None = None  # of the classifier in the weights, 0 for none; null: as the architecture was published
    pretrained: bool = False  # download the weights from the hub; gated ones need a token (HF_TOKEN)
    mpp: float | None = None  # micrometres per pixel; null: the known encoder's, else any
    licence: str | None = None  # of the weights; null: what the known encoder or timm's configuration states
    precision: Precision = "best"  # best, float32 or bfloat16: see docs/planning.md
    micro_batch: int | None = None  # tiles on the device at once; null: as many as suit it
    random_weights: bool = False  # no weights at all: for tests and dry runs, its answers mean nothing
    seed: int = 0  # of the random weights

    def __post_init__(self):
        if not self.outputs:
            raise ConfigError("timm: outputs names at least one of features, tokens, logits")


class TimmTeacher(TorchTeacher):
    """A loaded encoder. See the module's text for what it answers.

    In bfloat16 all of a vision transformer is computed so, its weights included: under autocast the sum that its blocks add to
    stays in float32, and with it the norms and the way back and forth. A ViT-S/14 answers 1.25 times as many tiles (Xeon with
    AMX, one core). Rounding changes the cosine of its features by 3e-6 there, under autocast by 2e-7.

    Args:
        net: timm model.
        input_px: Edge that tiles are resized to; None: as they come.
        pool: How a token sequence becomes one vector.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: TeacherSpec,
        *,
        input_px: int | None,
        pool: Pool,
        device: str,
        precision: Precision,
        micro_batch: int | None,
    ):
        super().__init__(spec, device=device, precision=precision, micro_batch=micro_batch)
        guard_norms(net)
        # Tokens gain nothing from channels_last, and their patches lose: a ViT-S/14 answers 0.85 times as many in bfloat16.
        self.layout = torch.contiguous_format if hasattr(net, "patch_embed") else torch.channels_last
        self.uses_autocast = not isinstance(net, VisionTransformer)
        self.net = net.eval().to(self.device, self._dtype, memory_format=self.layout)
        self.input_px, self.pool = input_px, pool
        config = timm.data.resolve_model_data_config(net)
        self.mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"
        self.mean = 255 * torch.tensor(config["mean"], device=self.device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(config["std"], device=self.device).view(1, 3, 1, 1)

    @property
    def _dtype(self) -> torch.dtype:
        """Of the weights, and of what the net is given."""
        return torch.bfloat16 if self.precision == BFLOAT16 and not self.uses_autocast else torch.float32

    def in_bfloat16(self) -> Self:
        other = super().in_bfloat16()
        if other._dtype != self._dtype:
            other.net = deepcopy(self.net).to(other._dtype)
        return other

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        if self.input_px is not None and images.shape[-1] != self.input_px:
            images = F.interpolate(images, size=(self.input_px,) * 2, mode=self.mode, antialias=True).clamp(0, 255)
        images = ((images - self.mean) / self.std).to(self._dtype).contiguous(memory_format=self.layout)
        hidden = self.net.forward_features(images)
        answers = {}
        for response in self.spec.responses:
            if response.name == "features":
                answers["features"] = pool_features(self.net, hidden, self.pool)
            elif response.name == "tokens":
                answers["tokens"] = feature_grid(self.net, hidden)
            else:
                answers["logits"] = self.net.forward_head(hidden)
        return answers


def load(options: TimmOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    """Load an encoder; see `teachers.registry.load_teacher`.

    Raises:
        ConfigError: not exactly one of weights, `pretrained` and `random_weights`; a tile size that the grid does not divide.
        TeacherError: unknown model, weights that do not fit, no access to the hub, an output that the model does not have.
    """
    chosen = [f"weights {weights}"] * bool(weights) + ["pretrained"] * options.pretrained
    chosen += ["random_weights"] * options.random_weights
    if len(chosen) != 1:
        raise ConfigError(
            f"timm: {options.model} needs its weights from exactly one place: a file (teacher.weights), the option "
            f"pretrained (download from the hub), or random_weights (dry runs); got {' and '.join(chosen) or 'none'}"
        )
    encoder = find_encoder(options.model)
    net, sha256, source = _build(options, encoder, weights)
    # A transformer has a grid of patches fixed when it was made; a convolutional net takes any tile.
    is_fixed = hasattr(net, "patch_embed") or bool(net.pretrained_cfg.get("fixed_input_size"))
    if options.img_size and hasattr(net, "set_input_size"):
        net.set_input_size(img_size=options.img_size)
    input_px = options.img_size or (_own_edge(net) if is_fixed else None)
    pool = options.pool or (encoder.pool if encoder else "model")
    responses = _responses(net, options, pool, input_px)
    known_mpp = encoder.mpp if encoder else None
    spec = TeacherSpec(
        name=NAME,
        responses=select_responses(responses, wanted, teacher=NAME),
        mpp=known_mpp if options.mpp is None else options.mpp,
        tile_px=_tile_sizes(responses, options, input_px),
        weights_sha256=sha256,
        licence=_licence(net, options, encoder),
        source=source,
    )
    how = {"device": device, "precision": options.precision, "micro_batch": options.micro_batch}
    return TimmTeacher(net, spec, input_px=input_px, pool=pool, **how)


def pool_features(net: nn.Module, hidden: Tensor, pool: Pool) -> Tensor:
    """One vector per tile, `[B, C]` (`[B, 2C]` for "token+avg"), from what `forward_features` gave.

    Raises:
        TeacherError: the model does not pool by itself, or has no class token.
    """
    if pool == "model":
        features = net.forward_head(hidden, pre_logits=True)
        if features.ndim != 2:
            raise TeacherError(
                f"timm: this model does not pool its features (shape {list(features.shape)}): set the option pool to token, "
                "avg or token+avg"
            )
        return features
    num_prefix = getattr(net, "num_prefix_tokens", 0)
    if hidden.ndim != 3 or ("token" in pool and not num_prefix):
        raise TeacherError(f"timm: pool={pool} needs a model with a class token; leave the option pool out for this one")
    token, mean = hidden[:, 0], hidden[:, num_prefix:].mean(dim=1)  # after the class token come registers, in no pool
    return {"token": token, "avg": mean, "token+avg": torch.cat((token, mean), dim=1)}[pool]


def feature_grid(net: nn.Module, hidden: Tensor) -> Tensor:
    """The last feature grid `[B, C, n, n]`, from a token sequence, an NCHW or an NHWC map.

    Raises:
        TeacherError: the tokens are no square grid.
    """
    if hidden.ndim == 3:
        hidden = hidden[:, getattr(net, "num_prefix_tokens", 0) :]
        n = round(hidden.shape[1] ** 0.5)
        if n * n == hidden.shape[1]:
            return hidden.transpose(1, 2).unflatten(2, (n, n))
    elif hidden.ndim == 4 and hidden.shape[1] == net.num_features:
        return hidden
    elif hidden.ndim == 4 and hidden.shape[3] == net.num_features:
        return hidden.permute(0, 3, 1, 2)
    raise TeacherError(
        f"timm: this model's features {list(hidden.shape)} are no square grid: leave tokens out of the option outputs"
    )


def _build(options: TimmOptions, encoder: Encoder | None, weights: str | None) -> tuple[nn.Module, str, str]:
    """The model with its weights, their hash and their source."""
    arguments = {} if options.num_classes is None else {"num_classes": options.num_classes}
    arguments = (create_arguments(encoder) if encoder else {}) | arguments | with_layers(options.arguments)
    if options.pretrained:
        net = _fetch(options.model, arguments)
        return (
            net,
            sha256_of_tensors(net),
            options.model if options.model.startswith(FOLDER) else f"{options.model}, downloaded",
        )
    # A known encoder's architecture is built by its timm name: the hub is not asked, and a cluster may be offline.
    architecture = encoder.architecture if encoder else options.model
    if encoder:
        arguments["pretrained_cfg_overlay"] = {"mean": encoder.mean, "std": encoder.std, "interpolation": "bicubic"}
    if options.random_weights:
        net = _create(architecture, options.seed, arguments)
        return net, sha256_of_settings(options, version=RANDOM_WEIGHTS_VERSION), f"random weights, seed {options.seed}"
    with weights_file(weights, teacher=NAME, expected=f"weights of {options.model}, safetensors or a state_dict") as path:
        state = read_state_dict(path, teacher=NAME)
        net = _create(architecture, options.seed, arguments)
        unexpected = state.keys() - net.state_dict().keys()
        if told := _told_by(unexpected, arguments):
            net = _create(architecture, options.seed, arguments | told)
        hint = "Check the option model, and num_classes: 0 for weights without a classifier, else the number of its classes"
        load_strictly(net, state, teacher=NAME, path=path, hint=hint + _more_arguments(state, unexpected))
        return net, sha256_of(path), str(weights)


def _create(architecture: str, seed: int, arguments: Mapping[str, Any]) -> nn.Module:
    """An architecture of timm's own, or of a hub's configuration, with random weights."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(architecture, pretrained=False, **arguments)
    except Exception as error:  # timm and the hub raise what they like: the cause stays attached
        raise _refusal(architecture, arguments, error) from error


def _fetch(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A model with the weights of the hub, or of a folder in the hub's form."""
    try:
        return timm.create_model(model, pretrained=True, **arguments)
    except RuntimeError as error:  # of torch and timm: what the hub's client raises is no RuntimeError
        unexpected = re.findall(r'"([^"]+)"', str(error).partition("Unexpected key")[2])
        if told := _told_by(unexpected, arguments):
            return _fetch(model, {**arguments, **told})
        raise TeacherError(
            f"timm: {model} has weights that do not fit the network that its configuration describes "
            f"({' '.join(str(error).split())[:600]}). Set what they need of timm.create_model with the option arguments, as "
            "the model's page says: mlp_layer, act_layer, reg_tokens, …; or num_classes, where only the classifier differs"
        ) from error
    except Exception as error:
        raise _refusal(model, arguments, error, pretrained=True) from error


def _told_by(unexpected: Iterable[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that the names of the weights leave no doubt about."""
    has_scale = any(name.endswith(LAYER_SCALE) for name in unexpected)
    return {"init_values": ANY_SCALE} if has_scale and "init_values" not in arguments else {}


def _more_arguments(state: Mapping[str, Tensor], unexpected: Iterable[str]) -> str:
    """Which arguments would explain the weights: a sentence for the message, or nothing."""
    likely = [f"reg_tokens: {state['reg_token'].shape[1]}"] if "reg_token" in unexpected else []
    fc1, fc2 = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[1]:  # two halves, of which one gates the other
        likely.append(f"mlp_layer: SwiGLUPacked, act_layer: SiLU, mlp_ratio: {fc1.shape[0] / fc1.shape[1]:.5g}")
    return f". By their form they need the option arguments {{{', '.join(likely)}}}" if likely else ""


def _refusal(model: str, arguments: Mapping[str, Any], error: Exception, *, pretrained: bool = False) -> TeacherError:
    """What to tell of an error of timm's, or of the hub's client, which has some twenty classes (offline, gated, …)."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if isinstance(error, TypeError):
        given = ", ".join(arguments) or "none"
        return TeacherError(
            f"timm: {model} does not take these arguments ({said}): given were {given}. Change the option arguments"
        )
    if model.startswith(FOLDER):
        return TeacherError(
            f"timm: cannot load {model} ({said}): it needs config.json, as the hub has it, and model.safetensors or "
            "pytorch_model.bin beside it"
        )
    if pretrained or model.startswith(HUB):
        return TeacherError(
            f"timm: cannot fetch {model} from the hub ({said}). No internet on this machine: download the weights elsewhere "
            "and set teacher.weights (for an encoder that is not in teachers/pathology_encoders.py, name its timm "
            "architecture as model). Gated model: accept its terms on its page and set HF_TOKEN on every node. Mistyped: "
            "check the name"
        )
    close = ", ".join(difflib.get_close_matches(model, timm.list_models(), n=5)) or "none; see timm.list_models()"
    return TeacherError(f"timm: cannot build {model!r} ({said}). Names that look like it: {close}")


def _responses(net: nn.Module, options: TimmOptions, pool: Pool, input_px: int | None) -> list[ResponseSpec]:
    """What the model answers, from a dry run on one grey tile."""
    edge_px = input_px or _own_edge(net)
    with torch.inference_mode():
        hidden = net.eval().forward_features(torch.zeros(1, 3, edge_px, edge_px))
        responses = []
        for name in dict.fromkeys(options.outputs):
            if name == "features":
                channels = pool_features(net, hidden, pool).shape[1]
                responses.append(_response(name, Kind.FEATURES, channels, None))
            elif name == "tokens":
                _, channels, _, n = feature_grid(net, hidden).shape
                tile_px = (options.tile_px or edge_px) if input_px else edge_px
                if tile_px % n:
                    raise ConfigError(
                        f"timm: {options.model} gives a grid of {n}x{n} tokens, which does not divide tiles of {tile_px} px: "
                        f"choose a tile_px that is a multiple of {n}, such as {max(1, round(tile_px / n)) * n}"
                    )
                responses.append(_response(name, Kind.FEATURES, channels, tile_px // n))
            else:
                if not net.num_classes:
                    raise TeacherError(f"timm: {options.model} has no classifier: leave logits out of the option outputs")
                responses.append(_response(name, Kind.LOGITS, net.num_classes, None))
    return responses


def _response(name: str, kind: Kind, channels: int, stride_px: int | None) -> ResponseSpec:
    return ResponseSpec(name=name, kind=kind, channels=channels, stride_px=stride_px, symmetry=Symmetry.NONE)


def _own_edge(net: nn.Module) -> int:
    """Input edge as the model was built: its configuration speaks of the weights that timm publishes, not of these."""
    built = getattr(getattr(net, "patch_embed", None), "img_size", None)
    return (built or timm.data.resolve_model_data_config(net)["input_size"])[-1]


def _tile_sizes(responses: Sequence[ResponseSpec], options: TimmOptions, input_px: int | None) -> tuple[int, ...] | None:
    """The tile sizes that the spec allows: resized tiles change the tokens' stride, so tokens pin the size."""
    if options.tile_px:
        return (options.tile_px,)
    is_dense = any(response.is_dense for response in responses)
    return (input_px,) if is_dense and input_px else None


def _licence(net: nn.Module, options: TimmOptions, encoder: Encoder | None) -> str:
    if options.licence:
        return options.licence
    if options.random_weights:
        return "none (random weights)"
    if encoder:
        return f"{encoder.licence}; verify upstream"
    stated = net.pretrained_cfg.get("license")
    # A local file may be anything: timm's configuration speaks of timm's own weights only.
    return f"{stated} (as timm states)" if stated and options.pretrained else "unknown"
