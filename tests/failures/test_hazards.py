"""Whole runs that meet a hazard; `python -m tests.failures.table` makes more of each."""

import os
import sys

import pytest

from tests.failures.hazards import HAZARDS, MERGED, meet
from tests.failures.lab import Lab

# Two to three minutes each: what they are made of is in test_store.py.
TOO_SLOW = {"changing objects", "store outage", "warned node"}


@pytest.fixture(scope="module")
def lab():
    """One lab, whose cluster lives on where the next hazard needs no other."""
    with Lab() as lab:
        yield lab


def test_no_hazard_is_forgotten():
    assert {*TOO_SLOW, *(each for pair in MERGED for each in pair.split(", "))} == HAZARDS.keys()


@pytest.mark.ray
@pytest.mark.thorough
@pytest.mark.parametrize("hazard", MERGED)
def test_every_tile_is_accounted_for(lab, hazard):
    """What each of them is promised to end in is asserted where it is met."""
    if "full disk" in hazard and (sys.platform != "linux" or os.geteuid() != 0):
        pytest.skip("needs the right to mount a small file system")
    outcome = meet(lab, hazard, seed=100)
    assert (outcome.lost, outcome.doubled) == (0, 0) and outcome.tiles > 200, outcome
