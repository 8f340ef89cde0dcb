"""Random numbers that belong to a tile: a hash of (seed, stream, position), never a generator with a state.

A tile's view and colours must not depend on the batch that it came in, the rank that trains it, how many workers read it,
or whether the run was killed in between. So nothing is drawn: everything random about a tile is computed from its place in
the run's plan. numpy (readers, the teacher pool) and torch (the trainer) give the same bits. What belongs to a name instead is
drawn from the name (`hash_text`).

The mixing function is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
MASK_64 = (1 << 64) - 1


def hash_positions(positions: np.ndarray | Tensor, *, seed: int, stream: int) -> np.ndarray | Tensor:
    """64 well mixed bits per position.

    Args:
        positions: int64 of any shape.
        seed: The run's seed.
        stream: Which of the decisions about a tile this is: two streams are independent.

    Returns:
        The same shape and kind: uint64 in numpy; in torch int64, which holds the same bits.
    """
    key = _mix_int(_mix_int(seed & MASK_64) + stream * GOLDEN)
    if isinstance(positions, np.ndarray):
        with np.errstate(over="ignore"):  # wrapping is what is wanted
            return _mix_array(positions.astype(np.int64).view(np.uint64) * np.uint64(GOLDEN) + np.uint64(key))
    return _mix_tensor(positions.long() * _signed(GOLDEN) + _signed(key))


def uniforms(positions: Tensor, num: int, *, seed: int, stream: int) -> Tensor:
    """`num` numbers per position, uniform in [0, 1).

    Args:
        positions: int64 `[B]`.
        num: How many numbers for each.
        seed: The run's seed.
        stream: Which decision they are for.

    Returns:
        float32 `[B, num]`, on the device of `positions`.
    """
    import torch  # here alone: readers hash positions without it

    state = hash_positions(positions, seed=seed, stream=stream)
    counter = torch.arange(1, num + 1, device=positions.device, dtype=torch.int64)
    bits = _mix_tensor(state[:, None] + counter * _signed(GOLDEN))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24  # 24 bits: what a float32 holds exactly


def hash_text(text: str, *, seed: int) -> float:
    """A number in [0, 1) that follows from a name: for draws that must not change with the order of the names."""
    return int.from_bytes(blake2b(f"{seed}|{text}".encode(), digest_size=7).digest(), "big") / 2.0**56


def _mix_int(z: int) -> int:
    z = (z ^ (z >> SHIFTS[0])) * MULTIPLIERS[0] & MASK_64
    z = (z ^ (z >> SHIFTS[1])) * MULTIPLIERS[1] & MASK_64
    return z ^ (z >> SHIFTS[2])


def _mix_array(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(SHIFTS[0]))) * np.uint64(MULTIPLIERS[0])
    z = (z ^ (z >> np.uint64(SHIFTS[1]))) * np.uint64(MULTIPLIERS[1])
    return z ^ (z >> np.uint64(SHIFTS[2]))


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, SHIFTS[0])) * _signed(MULTIPLIERS[0])
    z = (z ^ _shift_right(z, SHIFTS[1])) * _signed(MULTIPLIERS[1])
    return z ^ _shift_right(z, SHIFTS[2])


def _shift_right(z: Tensor, num_bits: int) -> Tensor:
    """Logical shift: torch has few operations on uint64, and `>>` on int64 copies the sign."""
    return (z >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64 bit value."""
    value &= MASK_64
    return value - (1 << 64) if value >> 63 else value
