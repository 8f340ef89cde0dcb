"""Ids, numbers and messages as text, whatever they came as."""

import json
from collections import Counter
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.words import counted, is_empty, last_line, number, printable, some, text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (11, "11"),
        (11.0, "11"),
        (np.float32(11), "11"),
        (Decimal("11.00"), "11"),
        (11.5, "11.5"),
        (" 007 ", "007"),
        ("11.0", "11.0"),
        (b"P\xe4", r"P\xe4"),
        ("Gr\u00f6\u00dfe".encode(), "Gr\u00f6\u00dfe"),
        (True, "True"),
        (date(2020, 1, 2), "2020-01-02"),
        (float("inf"), "inf"),
    ],
)
def test_an_id_is_text_however_it_is_stored(cell, expected):
    assert text(cell) == expected


def test_empty_cells():
    assert [is_empty(cell) for cell in (None, float("nan"), " ", "", b" ", 0, "a")] == [True] * 5 + [False] * 2


def test_numbers_with_a_comma_and_what_is_none():
    assert [number(cell) for cell in (" 0,25", "0.25", 0.25, Decimal("0.25"))] == [0.25] * 4
    for cell in ("20x", "1.000,5", ""):
        with pytest.raises(ValueError, match="could not convert"):
            number(cell)


@given(st.one_of(st.text(st.characters(codec=None)), st.binary()))
def test_whatever_is_made_printable_can_be_written(value):
    shown = printable(value)
    assert json.loads(json.dumps(shown)) == shown == shown.encode().decode() and "\0" not in shown


def test_what_is_printable_already_stays():
    assert printable("Gr\u00f6\u00dfe\t\n\u20ac \U0001f600") == "Gr\u00f6\u00dfe\t\n\u20ac \U0001f600"
    assert printable("a\udce4\ud800\0\x1b[1m") == r"a\xe4\ud800\x00\x1b[1m"


def test_counts_in_one_line():
    assert counted(Counter({".b": 2, ".a": 2, ".c": 1000})) == "1,000 x .c, 2 x .a, 2 x .b"
    assert counted({f".{index:02d}": 1 for index in range(23)}).endswith("1 x .19 and 3 of other kinds")


def test_the_first_few_of_many():
    assert some(["a", "b", "c"], 3) == "a, b, c"
    assert some("abcdef") == "a, b, c, d, e and 1 more"
    assert some(range(2000), 1) == "0 and 1,999 more"
    assert some(iter([])) == "nothing"
    assert some(["raw \udce4 byte"]) == r"raw \xe4 byte"
    assert some(["one", "two", "three"], 2, between="\n  ") == "one\n  two\n  and 1 more"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one line"), "one line"),
        (RuntimeError("Traceback:\n  File x\nValueError: the reason\nand what Ray adds\n"), "ValueError: the reason"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),  # without a message
        (RuntimeError("\n \n"), "RuntimeError"),
    ],
)
def test_the_last_line_of_an_error(error, expected):
    assert last_line(error) == expected
