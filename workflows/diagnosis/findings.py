"""What a diagnosis found: PASS, WARN or FAIL, in one sentence each, and what mends it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from csat.errors import ConfigError, DatasetError, SlideError, StorageError, TeacherError
from csat.words import printable

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
FOR_USERS = (ConfigError, DatasetError, SlideError, StorageError, TeacherError)


@dataclass
class Finding:
    """Of one check."""

    check: str
    state: str = PASS
    found: str = ""
    mend: str = ""  # what to do; empty where nothing is wrong

    def __post_init__(self):
        self._mends: list[str] = []

    def note(self, found: str) -> None:
        """More of what was found."""
        self.found = "; ".join(filter(None, (self.found, printable(found))))

    def warn(self, found: str, mend: str) -> None:
        """Something that a run may survive."""
        self._worse(WARN, found, mend)

    def fail(self, found: str, mend: str) -> None:
        """Something that a run does not survive."""
        self._worse(FAIL, found, mend)

    def _worse(self, state: str, found: str, mend: str) -> None:
        self.note(found)
        self.state = FAIL if FAIL in (self.state, state) else state
        if mend not in self._mends:  # what is wrong on every node is mended once
            self._mends.append(mend)
        self.mend = "; ".join(filter(None, self._mends))


class Findings:
    """All of a diagnosis, in order.

    Args:
        say: Called with each line as it comes; None: nothing is said before the end.
        spell: Makes flags of the settings that a sentence names.
    """

    def __init__(self, *, say: Callable[[str], None] | None = None, spell: Callable[[str], str] = str):
        self.all: list[Finding] = []
        self._say, self._spell = say, spell

    @property
    def has_failed(self) -> bool:
        return any(finding.state == FAIL for finding in self.all)

    def state_of(self, name: str) -> str | None:
        """Of a check; None: it was left out."""
        return next((finding.state for finding in self.all if finding.check == name), None)

    @contextmanager
    def check(self, name: str, *, mend: str) -> Iterator[Finding]:
        """One check. An error that is meant for users ends it, as a failure, and nothing else.

        Args:
            mend: What to do about such an error.
        """
        finding = Finding(name)
        try:
            yield finding
        except FOR_USERS as error:
            finding.fail(str(error), mend)
        finding.found, finding.mend = self._spell(finding.found), self._spell(finding.mend)
        self.all.append(finding)
        if self._say is not None:
            self._say(as_text(finding))

    def as_json(self, **more: Any) -> str:
        """All of it for a program."""
        return json.dumps({"ok": not self.has_failed, "checks": [asdict(each) for each in self.all], **more}, indent=2)


def as_text(finding: Finding) -> str:
    """One check as lines of a terminal."""
    lines = "\n                   ".join(finding.found.splitlines())
    shown = f"{finding.state}  {finding.check:12} {lines}"
    return f"{shown}\n      {'to mend':12} {finding.mend}" if finding.mend else shown
