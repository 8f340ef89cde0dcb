"""Slides that take the process that reads them down: C libraries may crash on a damaged file, and Python cannot catch that.

Whoever starts the process again must not read the same slide for ever. So each process writes the slide that it reads into a
file of its own, and asks the interpreter's fault handler to add its trace there should a fatal signal come (SIGSEGV, SIGBUS,
SIGFPE, SIGABRT, SIGILL). A process that is killed from outside (SIGKILL: a node that goes away, too little memory) leaves no
trace, so an innocent slide is never blamed.
"""

import faulthandler
import os
import tempfile
import uuid
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from csat.errors import SlideError

MAX_CRASHES = 2  # of processes that were reading a slide; then it is not read any more


class CrashLog:
    """Which slides have crashed their readers in this run, on this node. Picklable: each process writes a file of its own."""

    def __init__(self, run: str, folder: str | None = None):
        """
        Args:
            run: Names the run; another run tries its slides again.
            folder: Of this node; None: below its folder for temporary files. Made when first needed.
        """
        self.run = run
        self._folder = folder
        self._file: BinaryIO | None = None
        self._crashes: Counter[str] = Counter()
        self._slide: str | None = None

    @property
    def folder(self) -> Path:
        """The folder as this process sees it."""
        parent = Path(self._folder or Path(tempfile.gettempdir()) / f"csat-crashes-{os.getuid()}")
        return parent / sha256(self.run.encode()).hexdigest()[:16]

    def enter(self, slide: str) -> None:
        """Note that this process is about to read the slide.

        Raises:
            SlideError: "unreadable": it has crashed `MAX_CRASHES` processes.
        """
        if slide == self._slide:
            return
        if self._file is None:
            self._start()
        if self._crashes[slide] >= MAX_CRASHES:
            raise SlideError(
                "unreadable",
                f"{slide}: reading it crashed {self._crashes[slide]} processes (traces are in {self.folder}); open it with "
                "another program and save it again",
            )
        self._note(slide)

    def leave(self) -> None:
        """Note that no slide is being read: what crashes from here on is no slide's fault."""
        if self._file is not None and self._slide is not None:
            self._note(None)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_crashes": Counter(), "_slide": None}

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.crash"):
            slide, _, trace = path.read_text(errors="replace").partition("\n")
            if slide and trace:
                self._crashes[slide] += 1
        self._file = open(self.folder / f"{os.getpid()}-{uuid.uuid4().hex}.crash", "wb", buffering=0)  # noqa: SIM115 (kept open)
        faulthandler.enable(self._file, all_threads=False)

    def _note(self, slide: str | None) -> None:
        self._slide = slide
        self._file.truncate(0)
        self._file.seek(0)
        if slide is not None:
            self._file.write(slide.encode() + b"\n")
