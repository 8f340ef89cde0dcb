"""Names of nucleus types, and how else they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat import nuclei
from csat.nuclei import CONSEP, MONUSAC, PANNUKE, SYNONYMS, are_same, one_spelling

LISTS = {"pannuke": PANNUKE, "consep": CONSEP, "monusac": MONUSAC}


def test_our_lists_are_in_our_spelling():
    for names in LISTS.values():
        assert one_spelling(names) == names
    assert set(SYNONYMS.values()) <= {"background"}.union(*LISTS.values()), "every synonym is one of a type of ours"
    assert not set(SYNONYMS) & {"background"}.union(*LISTS.values()), "and our spelling is none"


def test_lists_that_go_round():
    assert are_same(("neopla", "inflam", "connec", "necros", "no-neo"), PANNUKE)  # the authors' type_info.json
    assert are_same(("Neoplastic", "Inflammatory", "Connective", "Dead", "Non-Neoplastic Epithelial"), PANNUKE)  # TIAToolbox
    assert are_same(("Miscellaneous", "Inflammatory", "Epithelial", "Spindle-Shaped"), CONSEP)
    assert are_same(("Epithelial", "Lymphocyte", "Macrophage", "Neutrophil"), MONUSAC)


def test_lists_are_compared_as_a_whole_and_in_order():
    assert not are_same(CONSEP, tuple(reversed(CONSEP)))
    assert not are_same(CONSEP, MONUSAC) and not are_same(PANNUKE, (*PANNUKE, "other")) and not are_same((), PANNUKE)
    assert are_same((), ()) and are_same(["a"], ("a",))
    assert are_same(("a", "b"), ("A", "b")) and not are_same(("A", "a"), ("a", "A")) and are_same(("A", "a"), ("A", "a"))


@given(st.lists(st.text(max_size=12), max_size=4))
def test_one_spelling_is_one(names):
    once = one_spelling(names)
    assert one_spelling(once) == once
    assert are_same(names, once) or len(set(once)) < len(once)


@pytest.mark.parametrize(
    ("names", "wanted", "order"),
    [
        (("a", "b"), ("a", "b"), [0, 1]),
        (("Neopla", "inflam", "dead"), ("dead", "neoplastic", "inflammatory"), [2, 0, 1]),
        (("a", "b"), ("a",), None),
        (("a", "b"), ("a", "c"), None),
        (("a", "A"), ("A", "a"), None),
        ((), (), []),
    ],
)
def test_the_same_classes_in_another_order(names, wanted, order):
    assert nuclei.order_of(names, wanted) == order
