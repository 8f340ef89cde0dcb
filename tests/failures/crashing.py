"""A reader whose process crashes on one slide, as on a file that a C library cannot bear."""

import faulthandler

from csat.slides.reader import SlideReader
from csat.tiles.reader import TileReader


class CrashingReader(TileReader):
    """Crashes on the slide whose name ends in `_000.svs`."""

    def _reader(self, slide: str, kind: str) -> SlideReader:
        if slide.endswith("_000.svs"):
            faulthandler._sigsegv()
        return super()._reader(slide, kind)
