"""A random number that belongs to a name. Apart from `counter_hash`, which needs torch: tiling a slide does not load it."""

from hashlib import blake2b


def hash_text(text: str, *, seed: int) -> float:
    """A number in [0, 1) that follows from a name: for draws that must not change with the order of the names."""
    return int.from_bytes(blake2b(f"{seed}|{text}".encode(), digest_size=7).digest(), "big") / 2.0**56
