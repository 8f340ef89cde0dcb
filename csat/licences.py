"""Licences on their way from teachers and images to a student: which there are, and what they forbid."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
UNDERSTOOD = r"apache|mit\b|bsd|cc0|cc[- ]by|none\b"  # how licences begin whose terms follow from their names


def licences_of(metadata: Mapping[str, Any]) -> list[str]:
    """Every licence behind a model, each once: of its images, then of whatever its weights came from or learned of.

    Args:
        metadata: Of the model's exported folder; a teacher and the run it started from carry their own in it.
    """
    found = [metadata["licence"]] if metadata.get("licence") else []
    for name in ("teacher", "started_from"):
        if isinstance(before := metadata.get(name), Mapping):
            several = before.get("teachers")  # each of them says its own
            for each in several.values() if isinstance(several, Mapping) and several else [before]:
                found += licences_of(each)
    return list(dict.fromkeys(found))


def licence_of(metadata: Mapping[str, Any]) -> str:
    """The same in one line; "unknown" where nobody states one."""
    return "; ".join(licences_of(metadata)) or UNKNOWN


def strictest(licences: Sequence[str]) -> str | None:
    """The one that forbids whatever the others forbid, and so decides; None where there is none, or one is not understood."""
    bans = {licence: restrictions(licence) for licence in licences}
    if not licences or None in bans.values():
        return None
    return next((licence for licence, own in bans.items() if all(own >= others for others in bans.values())), None)


def restrictions(licence: str) -> frozenset[str] | None:
    """Which of "derivatives" and "commerce" it forbids, and "other licences" where derivatives must keep it; None: it is not
    one of those that are understood here."""
    if not re.match(UNDERSTOOD, licence.strip(), re.IGNORECASE):
        return None
    bans = {
        "derivatives": forbids_derivatives(licence),
        "commerce": forbids_commerce(licence),
        "other licences": bool(re.search(r"\bSA\b|share[ -]?alike", licence, re.IGNORECASE)),
    }
    return frozenset(name for name, is_banned in bans.items() if is_banned)


def is_unknown(licence: str) -> bool:
    """Whether nobody has said which it is."""
    return not licence or bool(re.match(r"unknown|not stated", licence, re.IGNORECASE))


def forbids_derivatives(licence: str) -> bool:
    """Whether what is made of it may not be passed on (CC BY-NC-ND and its like)."""
    return bool(re.search(r"\bND\b|no[ -]?deriv", licence, re.IGNORECASE))


def forbids_commerce(licence: str) -> bool:
    """Whether it may not be used commercially (CC BY-NC and its like)."""
    return bool(re.search(r"\bNC\b|non[ -]?commercial|academic|research only", licence, re.IGNORECASE))
