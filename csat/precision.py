"""The number format that a network computes in, and what `best` is on a machine.

`bfloat16` means autocast: matrix products and convolutions in bfloat16, with weights, losses, the statistics of norms and the
optimiser in float32. (A vision transformer that teaches is in bfloat16 as a whole: see `teachers.timm_encoder`.) It pays where
the hardware multiplies bfloat16 itself, and `best` is bfloat16 there: on a CPU with AVX-512-BF16 or AMX, on a CUDA device from
Ampere on. Elsewhere `best` is float32. An Arm CPU is not looked into: float32.
"""

import os
import re
from functools import cache
from pathlib import Path

from csat.errors import ConfigError

BEST, FLOAT32, BFLOAT16 = "best", "float32", "bfloat16"
PRECISIONS = (BEST, FLOAT32, BFLOAT16)
# What `best` is on this node, whatever its hardware: for a node whose CPU flags promise what it is slow at.
VARIABLE = "CSAT_BEST_PRECISION"
CPU_FLAGS = re.compile(r"\b(avx512_bf16|amx_bf16)\b")


def check_precision(name: str, value: str) -> None:
    """Refuse what is none of `PRECISIONS`. Raises ConfigError that names the setting."""
    if value not in PRECISIONS:
        raise ConfigError(f"{name} is best, float32 or bfloat16, not {value!r}")


def resolve_precision(precision: str, device: str) -> str:
    """float32 or bfloat16: what this precision is on this machine.

    Args:
        device: As torch names it: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: `CSAT_BEST_PRECISION` is set to something else.
    """
    if precision != BEST:
        return precision
    if told := os.environ.get(VARIABLE):
        if told not in (FLOAT32, BFLOAT16):
            raise ConfigError(f"{VARIABLE}={told!r}: expected float32 or bfloat16")
        return told
    return BFLOAT16 if has_bfloat16(device) else FLOAT32


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.startswith("cuda"):
        import torch  # slow to import, and a CPU is known without it

        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    return bool(CPU_FLAGS.search(_cpu_flags()))


@cache
def _cpu_flags() -> str:
    """Of the first core, as Linux tells them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")
