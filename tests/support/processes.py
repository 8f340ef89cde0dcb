"""What the processes of a running verb have loaded, and how large they are: read from outside, while they live."""

import threading
from pathlib import Path

import psutil

EVERY_S = 0.2


class ProcessWatch:
    """While the context lasts, looks at the processes below this one whose title has one of these words.

    Attributes:
        resident: word → most bytes that such a process had resident, less what it maps of the object store.
        libraries: word → file names that such processes had mapped.
    """

    def __init__(self, *words: str):
        self.resident: dict[str, int] = dict.fromkeys(words, 0)
        self.libraries: dict[str, set[str]] = {word: set() for word in words}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessWatch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(EVERY_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    self._look(process.pid, " ".join(process.cmdline()))
                except (psutil.Error, OSError):
                    continue  # it has ended

    def _look(self, pid: int, title: str) -> None:
        for word in self.resident:
            if word in title:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                kib = {
                    name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "Rss" in name
                }
                self.resident[word] = max(self.resident[word], 1024 * (kib["RssAnon"] + kib["RssFile"]))
                maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
                self.libraries[word] |= {line.rpartition("/")[2] for line in maps if "/" in line}
