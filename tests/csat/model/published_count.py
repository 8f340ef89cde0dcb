"""Multiply-accumulates as the authors of CoCo DistillNet counted them, to hold their table against our networks.

Their tool (thop) goes through a network's modules: a transposed convolution costs its kernel at every position of its
*output*, where it works at every position of its input (at stride 2 a quarter of that); a bias costs 1 and batch norm 2 per
element; activations and pooling nothing. Read so, every figure of the three students comes out to the last published digit,
but for Mobile U-Net, whose batch norms (of another class there) were left out of both its figures.
`csat.model.cost.count_cost` counts what is multiplied.
"""

import torch
from torch import nn


@torch.no_grad()
def count_as_published(module: nn.Module, input_shape: tuple[int, ...], *, with_batch_norm: bool = True) -> tuple[int, int]:
    """Parameters and MACs of one forward pass in evaluation mode."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            taps = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            total += output.numel() * (taps + (layer.bias is not None))
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, nn.BatchNorm2d) and with_batch_norm:
            total += 2 * inputs[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    module.eval()(torch.zeros(input_shape, device=next(module.parameters()).device))
    for hook in hooks:
        hook.remove()
    left_out = [] if with_batch_norm else [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    num_params = sum(p.numel() for p in module.parameters()) - sum(p.numel() for layer in left_out for p in layer.parameters())
    return num_params, total
