"""What a network costs: parameters and multiply-accumulates."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_cost(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Parameters and MACs of one forward pass in evaluation mode.

    MACs are half of torch's FLOP count: convolutions, linears, matrix products and attention (both of its products); norms,
    activations, pooling and other elementwise work are not counted, as is the custom in papers.

    Args:
        module: Takes one float tensor.
        input_shape: Of that tensor, batch included: `(1, 3, 224, 224)`.
    """
    params = list(module.parameters())
    device, dtype = (params[0].device, params[0].dtype) if params else (torch.device("cpu"), torch.float32)
    was_training = {child: child.training for child in module.modules()}
    module.eval()
    try:
        # The plain form of attention: fused kernels are counted on some devices only.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(torch.zeros(tuple(input_shape), device=device, dtype=dtype))
    finally:
        for child, training in was_training.items():
            child.training = training
    return {"params": sum(p.numel() for p in params), "macs": counter.get_total_flops() // 2}


@torch.inference_mode()
def measure_speed(module: nn.Module, input_shape: Sequence[int], *, most_s: float = 2.0) -> float:
    """Images per second of forward passes in evaluation mode: the median of up to five after a warm-up.

    A figure to set beside another from the same machine at the same time; `workflows/benchmark.py` measures with care.

    Args:
        input_shape: Batch included.
        most_s: No further pass begins when this much time is over.
    """
    device = next(module.parameters()).device
    images = torch.zeros(tuple(input_shape), device=device)
    was_training = {child: child.training for child in module.modules()}
    module.eval()
    began, seconds = time.perf_counter(), []
    while len(seconds) < 2 or (len(seconds) < 6 and time.perf_counter() - began < most_s):
        start = time.perf_counter()
        module(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    for child, training in was_training.items():
        child.training = training
    return input_shape[0] / statistics.median(seconds[1:])
