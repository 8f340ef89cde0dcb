"""Whole runs that meet a hazard; `python -m tests.failures.table` makes more of each."""

import os
import sys

import pytest

from tests.failures.hazards import HAZARDS, meet
from tests.failures.lab import Lab

# Two to three minutes each: what they are made of is in test_store.py.
TOO_SLOW = {"changing objects", "store outage", "warned node"}

pytestmark = [pytest.mark.ray, pytest.mark.thorough]


@pytest.fixture(scope="module")
def lab():
    """One lab, whose cluster lives on where the next hazard needs no other."""
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("hazard", [hazard for hazard in HAZARDS if hazard not in TOO_SLOW])
def test_every_tile_is_accounted_for(lab, hazard):
    """What each of them is promised to end in is asserted where it is met."""
    if hazard == "full disk" and (sys.platform != "linux" or os.geteuid() != 0):
        pytest.skip("needs the right to mount a small file system")
    outcome = meet(lab, hazard, seed=100)
    assert (outcome.lost, outcome.doubled) == (0, 0) and outcome.tiles > 200, outcome
