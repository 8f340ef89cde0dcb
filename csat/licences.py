"""Licences on their way from teachers and images to a student: which there are, and what they forbid."""

import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown"


def licences_of(metadata: Mapping[str, Any]) -> list[str]:
    """Every licence behind a model, each once: of its images, then of whatever its weights came from or learned of.

    Args:
        metadata: Of the model's exported folder; a teacher and the run it started from carry their own in it.
    """
    found = [metadata["licence"]] if metadata.get("licence") else []
    for name in ("teacher", "started_from"):
        if isinstance(before := metadata.get(name), Mapping):
            found += licences_of(before)
    return list(dict.fromkeys(found))


def licence_of(metadata: Mapping[str, Any]) -> str:
    """The same in one line; "unknown" where nobody states one."""
    return "; ".join(licences_of(metadata)) or UNKNOWN


def is_unknown(licence: str) -> bool:
    """Whether nobody has said which it is."""
    return not licence or bool(re.match(r"unknown|not stated", licence, re.IGNORECASE))


def forbids_derivatives(licence: str) -> bool:
    """Whether what is made of it may not be passed on (CC BY-NC-ND and its like)."""
    return bool(re.search(r"\bND\b|no[ -]?deriv", licence, re.IGNORECASE))


def forbids_commerce(licence: str) -> bool:
    """Whether it may not be used commercially (CC BY-NC and its like)."""
    return bool(re.search(r"\bNC\b|non[ -]?commercial|academic|research only", licence, re.IGNORECASE))
