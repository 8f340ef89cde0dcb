"""Attention: terms against the losses, agreement, second derivatives, a fixed batch, two processes, costs, refusals."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from csat.errors import ConfigError, TeacherError
from csat.losses.attention import attention_distance, attention_maps, normalise_jointly
from csat.losses.classes import cross_entropy
from csat.losses.distribution import softened_cross_entropy
from csat.losses.rms import rms_distance
from csat.methods.attention import Attention, AttentionConfig
from csat.methods.contract import Setting
from csat.methods.registry import build_method
from csat.model.registry import ModelConfig, build_model
from csat.model.tapped import TappedClassifier, TappedOptions
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.tasks import Task
from csat.views.grid import downsample
from tests.support.forks import in_two_processes
from tests.support.labelled_toy import losses_of_steps, make_info

TILE_PX = 64
INFO = make_info()
LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None, channel_names=INFO.classes)
MAP = ResponseSpec(name="features", kind=Kind.FEATURES, channels=48, stride_px=8)
CAMS = tuple(
    ResponseSpec(name=f"cam_{variant}", kind=Kind.ATTENTION, channels=2, stride_px=8, channel_names=INFO.classes)
    for variant in ("at_plus", "at")
)
TEACHER = TeacherSpec(name="run", responses=(LABEL, MAP, *CAMS), mpp=None)


def make(teacher: TeacherSpec = TEACHER, *, factor: int = 2, info=INFO, frozen=(), **options) -> Attention:
    """With KD too, which is off by default."""
    options = {"alpha_kd": 1.0, **options}
    torch.manual_seed(0)
    model = TappedClassifier(TappedOptions(backbone="csat_nano", layer="stages.1", downsample=factor), (LABEL,))
    model.freeze(frozen)
    return build_method("attention", options, model, Setting(tile_px=TILE_PX, data=info, teacher=teacher)).eval()


def tap(model, images):
    """The layer's map, and the logits."""
    maps, predictions = model.tap(images, ["features"])
    return maps["features"], predictions["label"]


def make_batch(num: int = 4, labels=(0, 1, 1, 0)) -> Batch:
    draw = torch.Generator().manual_seed(0)
    responses = {spec.name: torch.rand(num, *spec.shape(TILE_PX), generator=draw).half() for spec in TEACHER.responses}
    return Batch(
        tiles=torch.randint(0, 256, (num, 3, TILE_PX, TILE_PX), generator=draw, dtype=torch.uint8),
        positions=torch.arange(num),
        responses=responses,
        targets={"label": torch.tensor(labels)},
    )


@pytest.mark.parametrize(("variant", "form"), [("at_plus", "at+"), ("at", "at")])
def test_the_terms_are_the_losses_and_the_total_is_the_papers(variant, form):
    method, batch = make(variant=variant, alpha_kd=0.5, temperature=2.0), make_batch()
    assert [spec.name for spec in method.responses] == ["label", "features", f"cam_{variant}"]
    features, logits = tap(method.model, downsample(batch.tiles / 255, 2))
    assert features.shape == (4, 48, 4, 4), "half the pixels, half the cells; interpolated to the teacher's"
    maps = attention_maps(features, logits, form)
    expected = {
        "ce": cross_entropy(logits, batch.targets["label"]),
        "kd": softened_cross_entropy(logits, batch.responses["label"], 2.0),
        "fm": rms_distance(features, batch.responses["features"]),
        "at": attention_distance(maps, batch.responses[f"cam_{variant}"]),
    }
    terms = method(batch)
    assert list(terms) == list(method.weights) == list(expected)
    for name, term in terms.items():
        assert term.shape == (4,) and term.dtype == torch.float32
        torch.testing.assert_close(term, expected[name])
    weighed = expected["ce"] + 0.5 * expected["kd"] + 0.1 * expected["fm"] + 10 * expected["at"]
    torch.testing.assert_close(method.total(terms), weighed)


def test_maps_that_agree_cost_nothing():
    method, batch = make(factor=1), make_batch()
    features, logits = tap(method.model, batch.tiles / 255)
    cam = normalise_jointly(attention_maps(features, logits))
    batch.responses = {"label": logits.detach(), "features": features.detach(), "cam_at_plus": cam}
    terms = method(batch)
    assert terms["fm"].abs().max() < 1e-5 and terms["at"].abs().max() < 1e-4


def test_attention_reaches_every_weight_before_the_layer_and_the_head():
    method = make()
    method(make_batch())["at"].sum().backward()
    gradients = {name: parameter.grad for name, parameter in method.model.named_parameters()}
    assert gradients["head.weight"].abs().sum() > 0, "only a second derivative gets there: the maps are a gradient"
    assert all(gradient is not None for name, gradient in gradients.items() if name != "head.bias")


@pytest.mark.parametrize("form", ["at+", "at"])
def test_the_gradient_through_the_maps_is_that_of_finite_differences(form):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 2, 2).double()
    head = torch.nn.Linear(4, 3).double()
    images, weighing = torch.rand(2, 3, 8, 8, dtype=torch.double), torch.rand(2, 3, 4, 4)

    def value() -> torch.Tensor:
        features = layer(images)
        return (attention_maps(features, head(features.tanh().mean((2, 3))), form, keep_graph=True) * weighing).sum()

    gradients = torch.autograd.grad(value(), [layer.weight, head.weight])
    for parameter, gradient in zip((layer.weight, head.weight), gradients, strict=True):
        direction, step = torch.randn_like(parameter), 1e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
            values.append(float(value()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * step)
        assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2, abs=2e-3)


def test_steps_lower_the_loss_of_a_fixed_batch():
    method, batch = make().train(), make_batch()
    losses = losses_of_steps(method, batch, steps=12, lr=2e-3)
    assert losses[-1] < 0.9 * losses[0]


def test_half_precision_gives_float32_terms_close_by():
    method, batch = make(), make_batch()
    expected = method(batch)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(batch)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected[name], rtol=0.1, atol=0.1)


def test_a_batch_of_one_class_has_maps_of_all():
    terms = make()(make_batch(labels=(1, 1, 1, 1)))
    assert all(torch.isfinite(term).all() for term in terms.values())
    torch.testing.assert_close(terms["at"], make()(make_batch())["at"], msg="labels do not enter the attention term")


def test_the_defaults_are_the_authors_example():
    """No KD: neither the term nor its response."""
    config = AttentionConfig()
    assert (config.variant, config.alpha_kd, config.alpha_fm, config.alpha_at) == ("at_plus", 0.0, 0.1, 10.0)
    assert [spec.name for spec in Attention.wanted(config, TEACHER)] == ["features", "cam_at_plus"]
    method = make(alpha_kd=config.alpha_kd)
    assert method.weights == {"ce": 1.0, "fm": 0.1, "at": 10.0} and method(make_batch()).keys() == method.weights.keys()


def test_ablations_ask_for_less():
    batch = make_batch()
    for options, names in (
        ({"variant": "none"}, ["label", "features"]),
        ({"alpha_at": 0.0, "alpha_fm": 0.0}, ["label"]),
        ({"alpha_kd": 0.0, "alpha_fm": 0.0}, ["cam_at_plus"]),
    ):
        method = make(**options)
        assert [spec.name for spec in method.responses] == names
        assert len(method(batch)) == 1 + len(names)


def test_a_frozen_backbone_has_no_maps_to_learn_by():
    for options in ({}, {"alpha_fm": 0.0}, {"alpha_at": 0.0}):
        with pytest.raises(ConfigError, match="model.freeze backbone keeps the layer.*model.freeze none.*alpha_at 0"):
            make(frozen=["backbone"], **options)
    method = make(frozen=["backbone"], alpha_fm=0.0, alpha_at=0.0)
    method.total(method(make_batch())).mean().backward()
    learns = {name for name, parameter in method.model.named_parameters() if parameter.grad is not None}
    assert learns == {"head.weight", "head.bias"}


def _work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    method, batch = DistributedDataParallel(make()), make_batch()
    part = slice(2 * rank, 2 * rank + 2)
    terms = method(_cut(batch, part))
    method.module.total(terms).mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in method.module.named_parameters()}, os.path.join(folder, "grads.pt"))
    dist.destroy_process_group()


def _cut(batch: Batch, part: slice) -> Batch:
    cut = [{name: value[part] for name, value in each.items()} for each in (batch.responses, batch.targets)]
    return Batch(tiles=batch.tiles[part], positions=batch.positions[part], responses=cut[0], targets=cut[1])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    in_two_processes(_work, str(tmp_path))
    method = make()
    method.total(method(make_batch())).mean().backward()
    together = torch.load(tmp_path / "grads.pt", weights_only=True)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_what_cannot_work_is_refused():
    with pytest.raises(TeacherError, match=r"attention needs the response 'cam_at_plus'.*teacher 'other'.*it gives: label"):
        make(TeacherSpec(name="other", responses=(LABEL, MAP), mpp=None))
    narrow = ResponseSpec(name="features", kind=Kind.FEATURES, channels=5, stride_px=8)
    with pytest.raises(ConfigError, match="5 channels and the student's 48.*alpha_fm 0"):
        make(TeacherSpec(name="run", responses=(LABEL, narrow, *CAMS), mpp=None))
    with pytest.raises(ConfigError, match="the task is segmentation"):
        make(info=make_info(Task.SEGMENTATION))
    with pytest.raises(ConfigError, match="the data have one: pale"):
        make(info=make_info(classes=("pale",)))
    with pytest.raises(ConfigError, match="the teacher's classes are pale, dark, and those of the data a, b"):
        make(info=make_info(classes=("a", "b")))
    for name, form in (("unet", "UNetModel"), ("csat_nano", "Student")):
        model = build_model(ModelConfig(name=name), INFO, load=None)
        with pytest.raises(ConfigError, match=f"a {form} has none named.*model.options.layer"):
            Attention(AttentionConfig(), model, Setting(tile_px=TILE_PX, data=INFO, teacher=TEACHER))
    with pytest.raises(ConfigError, match="'attention' learns from a teacher too"):
        build_method("attention", {}, make().model, Setting(tile_px=TILE_PX, data=INFO))
    for wrong in ({"variant": "at+"}, {"alpha_at": -1.0}, {"alpha_kd": float("nan")}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AttentionConfig(**wrong)
    for nothing in ({"variant": "none", "alpha_fm": 0.0}, {"alpha_at": 0.0, "alpha_fm": 0.0}):
        with pytest.raises(ConfigError, match="nothing would be learned from the teacher. Set alpha_kd"):
            AttentionConfig(**nothing)
