"""The types of nuclei: one spelling of each, used by teachers and data sets alike, and how else they are written."""

import re
from collections.abc import Sequence

PANNUKE = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")  # epithelial: not neoplastic
CONSEP = ("other", "inflammatory", "epithelial", "spindle")
MONUSAC = ("epithelial", "lymphocyte", "macrophage", "neutrophil")
# Other spelling → ours. Of the authors' and TIAToolbox's lists, the sets' own papers, and earlier versions of this project.
# Lists are compared as a whole, so that "epithelial" of one set is not taken for that of another.
SYNONYMS = {
    "nolabe": "background",
    "neopla": "neoplastic",
    "neoplastic cells": "neoplastic",
    "inflam": "inflammatory",
    "connec": "connective",
    "connective/soft tissue cells": "connective",
    "necros": "dead",
    "dead cells": "dead",
    "no neo": "epithelial",
    "non neoplastic epithelial": "epithelial",
    "miscellaneous": "other",
    "spindle shaped": "spindle",
    "lymphocytes": "lymphocyte",
    "macrophages": "macrophage",
    "neutrophils": "neutrophil",
}


def one_spelling(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, in lower case, with spaces for hyphens and underscores, and synonyms replaced."""
    plain = (" ".join(re.findall(r"[^\s_-]+", name.lower())) for name in names)
    return tuple(SYNONYMS.get(name, name) for name in plain)


def are_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order, however they are spelt.

    Classes that only differ by spelling ("A" and "a") are told apart: lists with such are compared as they stand.
    """
    plain = one_spelling(one)
    return tuple(one) == tuple(other) or (plain == one_spelling(other) and len(set(plain)) == len(plain))


def order_of(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where in `names` each of the wanted classes stands; None where the two do not name the same classes."""
    if are_same(names, wanted):
        return list(range(len(names)))
    mine, theirs = one_spelling(names), one_spelling(wanted)
    if sorted(mine) != sorted(theirs) or len(set(mine)) < len(mine):
        return None
    return [mine.index(name) for name in theirs]
