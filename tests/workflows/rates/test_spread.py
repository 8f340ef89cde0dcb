import math

import pytest

from workflows.rates.spread import cell, ratio, summary, times


def test_a_summary_keeps_every_round():
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0, "rounds": [3.0, 1.0, 2.0]}


def test_ratios_are_of_one_round():
    """A machine that was three times slower in the second round: the ratio of the medians would be 1.5."""
    assert ratio([30.0, 10.0, 30.0], [20.0, 20.0 / 3, 20.0])["median"] == pytest.approx(1.5)
    assert times([30.0, 10.0], [20.0, 5.0]) == "x1.75"
    assert math.isnan(ratio([1.0], [0.0])["median"])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], "-"),
        ([123.4], "123"),
        ([0.01234], "0.012"),
        ([1500.0, 1000.0, 1250.0], "1,250 [1,000, 1,500]"),
        ([12.34, 11.11], "11.7 [11.1, 12.3]"),
        ([1.234, 5.0], "3.12 [1.23, 5.00]"),
    ],
)
def test_a_cell_has_as_many_digits_as_say_something(values, shown):
    assert cell(values) == shown
