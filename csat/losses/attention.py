"""Class-wise attention maps of a classifier, AT and AT+, and the distance between those of two resolutions.

del Amor et al. 2024, "Attention to detail: inter-resolution knowledge distillation" (arXiv 2401.06010).
"""

from typing import Literal

import torch
from torch import Tensor

from csat.losses.rms import rms_distance

Form = Literal["at", "at+"]
TINY = 1e-8  # keeps the map of a tile without evidence, which is constant, from being divided by zero


def attention_maps(features: Tensor, logits: Tensor, form: Form = "at+", *, keep_graph: bool = False) -> Tensor:
    """Where a classifier sees evidence for each class, by the gradient of its logits (grad-CAM).

    `w_{c,k} = mean_hw dz_c / dA_k`. AT is grad-CAM: `M_c = ReLU(sum_k w_{c,k} A_k)`. AT+ takes the ReLU inside the sum, so
    that channels against a class cannot cancel those for it: `M_c = sum_k ReLU(w_{c,k} A_k)`. It is computed as
    `ReLU(w) ReLU(A) + ReLU(-w) ReLU(-A)`, the same numbers without a map for each pair of class and channel.

    Args:
        features: A, `[B, K, H, W]`, part of the graph of `logits`.
        logits: z, `[B, C]`. A tile's logits must depend on its own features only (no batch norm in training mode between).
        form: "at" or "at+".
        keep_graph: The maps carry gradients to the parameters (second derivatives: `w` is a gradient itself), as a student's
            must. Without, they are detached, and the graph of `logits` stays usable all the same.

    Returns:
        float32 `[B, C, H, W]`, non-negative, not normalised.

    Raises:
        ValueError: the shapes are others, or the logits do not follow from the features.
    """
    if form not in ("at", "at+"):
        raise ValueError(f"attention_maps: form is at or at+, not {form!r}")
    if features.ndim != 4 or logits.ndim != 2 or len(features) != len(logits):
        raise ValueError(
            f"attention_maps: expected features [B, K, H, W] and logits [B, C], got {list(features.shape)} and "
            f"{list(logits.shape)}"
        )
    try:
        gradients = [
            torch.autograd.grad(logits[:, c].sum(), features, create_graph=keep_graph, retain_graph=True)[0]
            for c in range(logits.shape[1])
        ]
    except RuntimeError as error:
        raise ValueError(f"attention_maps: the logits must be computed from these very features ({error})") from error
    weights = torch.stack([gradient.float().mean((2, 3)) for gradient in gradients], 1)  # [B, C, K]
    maps = features.float() if keep_graph else features.detach().float()
    with torch.autocast(features.device.type, enabled=False):
        if form == "at":
            return _weigh(weights, maps).relu()
        return _weigh(weights.relu(), maps.relu()) + _weigh((-weights).relu(), (-maps).relu())


def normalise_jointly(maps: Tensor) -> Tensor:
    """Minimum 0 and maximum 1 over all classes and cells of a tile together: what is weak for every class stays weak.

    Args:
        maps: `[B, C, H, W]`.

    Returns:
        float32 `[B, C, H, W]` in [0, 1]; zeros where a tile's maps are constant.
    """
    maps = maps.float()
    low, high = (extreme(maps, dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
    return (maps - low) / (high - low + TINY)


def attention_distance(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """`sqrt(mean_hwc (M_S - M_T)^2)` of the jointly normalised maps, per tile.

    The paper upsamples the student's image, and so both maps have one size. A student at its own low resolution (ours) has
    smaller maps: they are interpolated to the teacher's size after normalisation.

    Args:
        student_maps: `[B, C, h, w]`, as `attention_maps` gives them.
        teacher_maps: `[B, C, H, W]` of the same classes; detached.

    Returns:
        float32 `[B]` in [0, 1].

    Raises:
        ValueError: the maps differ in more than their size.
    """
    return rms_distance(normalise_jointly(student_maps), normalise_jointly(teacher_maps))


def _weigh(weights: Tensor, maps: Tensor) -> Tensor:
    """`sum_k weights[b, c, k] maps[b, k, h, w]`."""
    return torch.einsum("bck,bkhw->bchw", weights, maps)
