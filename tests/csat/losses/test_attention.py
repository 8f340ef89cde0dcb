"""Attention maps against hand-worked gradients, and their second derivatives against torch.func and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csat.losses.attention import attention_distance, attention_maps, normalise_jointly

FORMS = ("at", "at+")


def forward(parameters: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[B, 4, h, w]` and logits `[B, 3]` that depend on them nonlinearly: the weights differ with the image."""
    features = F.conv2d(images, parameters["conv"], padding=1)
    return features, F.gelu(features).square().mean((2, 3)) @ parameters["fc"].T


def make_parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv": (4, 2, 3, 3), "fc": (3, 4)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def make_images(dtype: torch.dtype = torch.float32, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, 2, size, size, generator=generator, dtype=torch.float64).to(dtype)


def reference_loss(parameters: dict[str, Tensor], images: Tensor, target: Tensor, form: str) -> Tensor:
    """The formulas as they are written, by torch.func and in the dtype of what it gets."""

    def head(features: Tensor) -> Tensor:
        return F.gelu(features).square().mean((1, 2)) @ parameters["fc"].T

    losses = []
    for image, wanted in zip(images, target, strict=True):
        features = F.conv2d(image[None], parameters["conv"], padding=1)[0]
        weights = torch.func.jacrev(head)(features).mean((2, 3))  # [C, K]
        products = weights[:, :, None, None] * features
        maps = products.relu().sum(1) if form == "at+" else products.sum(1).relu()
        maps = (maps - maps.min()) / (maps.max() - maps.min() + 1e-8)
        losses.append((maps - wanted).square().mean().sqrt())
    return torch.stack(losses).mean()


def test_by_hand():
    # A = (2, -1 | 4, 4): channel 0 is 2, 4 in its two cells, channel 1 is -1, 4. z_c = sum of A_k times (1, -1) over all cells
    # for class 0 and (0, 2) for class 1, so that w_0 = (1, -1), w_1 = (0, 2).
    features = torch.tensor([[[2.0, 4.0]], [[-1.0, 4.0]]])[None].requires_grad_()
    sums = features.sum((2, 3))
    logits = sums @ torch.tensor([[1.0, -1.0], [0.0, 2.0]]).T
    at = torch.tensor([[3.0, 0.0], [0.0, 8.0]]).view(1, 2, 1, 2)  # ReLU(2 + 1), ReLU(4 - 4); ReLU(-2), 8
    plus = torch.tensor([[3.0, 4.0], [0.0, 8.0]]).view(1, 2, 1, 2)  # 2 + 1, 4 + 0; 0, 8
    torch.testing.assert_close(attention_maps(features, logits, "at"), at)
    torch.testing.assert_close(attention_maps(features, logits, "at+"), plus)
    torch.testing.assert_close(normalise_jointly(plus), plus / 8)
    # AT+ against AT, both jointly normalised: the second cell of class 0 differs by 1/2.
    torch.testing.assert_close(attention_distance(plus, at), torch.tensor([0.25]))


def test_normalised_over_classes_and_cells_together():
    maps = torch.rand(3, 4, 5, 5) + 2
    normal = normalise_jointly(maps)
    assert torch.equal(normal.flatten(1).amin(1), torch.zeros(3))
    torch.testing.assert_close(normal.flatten(1).amax(1), torch.ones(3))
    assert (normal.flatten(2).amax(2) < 0.999).any(), "a class that is weak everywhere stays weak"


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_agree_with_torch_func_and_finite_differences(form):
    parameters, images = make_parameters(), make_images()
    target = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(5))
    target = normalise_jointly(target)
    for parameter in parameters.values():
        parameter.requires_grad_()
    maps = attention_maps(*forward(parameters, images), form, keep_graph=True)
    loss = attention_distance(maps, target).mean()
    grads = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    exact, wide = make_parameters(torch.float64), make_images(torch.float64)
    expected = torch.func.grad(reference_loss)(exact, wide, target.double(), form)
    torch.testing.assert_close(loss, reference_loss(exact, wide, target.double(), form).float(), atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        assert grad.abs().max() > 1e-3, name
        torch.testing.assert_close(grad, expected[name].float(), atol=1e-4, rtol=1e-3)

    step, direction = 1e-6, {name: torch.randn_like(value) for name, value in exact.items()}
    beside = [
        reference_loss({n: v + s * direction[n] for n, v in exact.items()}, wide, target.double(), form) for s in (step, -step)
    ]
    slope = sum((grads[name].double() * direction[name]).sum() for name in grads)
    torch.testing.assert_close(slope, (beside[0] - beside[1]) / (2 * step), atol=1e-4, rtol=1e-3)


def test_the_weights_carry_gradients_too():
    """A map whose weights were held fixed would have another gradient: a classifier's matrix would have none at all."""
    parameters = {name: value.requires_grad_() for name, value in make_parameters().items()}
    features, logits = forward(parameters, make_images())
    maps = attention_maps(features, logits, keep_graph=True)
    assert torch.autograd.grad(maps.sum(), parameters["fc"])[0].abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
def test_maps_without_a_graph_leave_the_graph_of_the_logits_alone(form):
    parameters = {name: value.requires_grad_() for name, value in make_parameters().items()}
    features, logits = forward(parameters, make_images())
    maps = attention_maps(features, logits, form)
    assert not maps.requires_grad
    torch.testing.assert_close(maps, attention_maps(features, logits, form, keep_graph=True).detach())
    logits.sum().backward()
    assert parameters["conv"].grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
def test_zero_at_agreement_and_the_teacher_gets_no_gradient(form):
    parameters = {name: value.requires_grad_() for name, value in make_parameters().items()}
    maps = attention_maps(*forward(parameters, make_images()), form, keep_graph=True)
    value = attention_distance(maps, maps)
    assert torch.equal(value, torch.zeros(2))
    teacher = torch.rand(2, 3, 10, 10, requires_grad=True)  # of another size
    attention_distance(maps, teacher).sum().backward()
    assert teacher.grad is None and parameters["conv"].grad.abs().sum() > 0


def test_a_tile_without_evidence_is_finite():
    features = torch.zeros(1, 4, 3, 3, requires_grad=True)
    logits = features.mean((2, 3)) @ make_parameters()["fc"].T
    maps = attention_maps(features, logits, keep_graph=True)
    value = attention_distance(maps, torch.rand(1, 3, 3, 3))
    value.sum().backward()
    assert value.isfinite().all() and features.grad.isfinite().all()


def test_maps_of_one_tile_do_not_depend_on_the_others():
    parameters, images = make_parameters(), make_images()
    parameters["conv"].requires_grad_()
    together = attention_maps(*forward(parameters, images))
    alone = [attention_maps(*forward(parameters, images[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    features = torch.randn(2, 4, 6, 6).to(dtype).requires_grad_()
    matrix = make_parameters(dtype)["fc"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = features.mean((2, 3)) @ matrix.T
        maps = attention_maps(features, logits)
    assert maps.dtype == torch.float32
    whole = features.detach().float().requires_grad_()
    expected = attention_maps(whole, whole.mean((2, 3)) @ matrix.float().T)
    torch.testing.assert_close(normalise_jointly(maps), normalise_jointly(expected), atol=0.02, rtol=0)
    value = attention_distance(maps.to(dtype), expected.to(dtype))
    assert value.dtype == torch.float32 and (value < 0.02).all()


def test_misfits_are_named():
    features = torch.randn(1, 4, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match="computed from these very features"):
        attention_maps(features, torch.randn(1, 2, requires_grad=True) * 2)
    with pytest.raises(ValueError, match=r"features \[B, K, H, W\].*\[1, 4\]"):
        attention_maps(features.mean((2, 3)), features.mean((2, 3)))
    with pytest.raises(ValueError, match=r"at or at\+, not 'cam'"):
        attention_maps(features, features.mean((2, 3)), "cam")
    with pytest.raises(ValueError, match=r"rms_distance.*\[1, 3, 2, 2\].*\[1, 4, 2, 2\]"):
        attention_distance(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))
