import pytest

from csat.runs.accounts import steady_rate


def test_the_steady_rate_leaves_the_start_out():
    """100 tiles while everything started, then 100 at 50 tiles/s and 300 at 100."""
    lines = [{"tiles": 100, "tiles_per_s": 2}, {"tiles": 200, "tiles_per_s": 50}, {"tiles": 500, "tiles_per_s": 100}]
    assert steady_rate(lines) == pytest.approx(400 / 5)


def test_without_a_second_line_there_is_none():
    assert steady_rate([]) is None and steady_rate([{"tiles": 5, "tiles_per_s": 1}]) is None
