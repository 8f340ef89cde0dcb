"""Memory does not follow the number of a slide's nuclei. A million: `python -m tests.support.many_nuclei 1000000`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.thorough
@pytest.mark.slow
def test_many_nuclei_in_bounded_memory():
    measured = []
    for number in (20_000, 120_000):
        command = [sys.executable, "-m", "tests.support.many_nuclei", str(number)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        measured.append(json.loads(done.stdout))
    few, many = measured
    assert many["nuclei"] > 5 * few["nuclei"] and many["nuclei"] > 100_000
    grown = [each["mib"]["with_geojson"] - each["mib"]["before"] for each in measured]
    assert grown[1] < 250 and grown[1] - grown[0] < 100, measured  # all of them with their outlines would be 60 MB more
