"""Where a resolution comes from: one rule for slides, images, the rows of a parquet and labelled sets.

Of what there is, the first holds:

    given       what the user gave for this very slide, row or image (a CSV's column `mpp`)
    stated      what the file says: a slide's um/px, a tif's resolution tags where a microscope may mean them, a row's `mpp`
    source_mpp  what the user gave for whatever states none
    guessed     10 / objective power: 40x is 0.2325 to 0.263 um/px by scanner, 0.25 by this guess

A printer's or a screen's resolution (72, 300, 600 dpi) states nothing.
"""

import math
from typing import NamedTuple

from csat.errors import ConfigError

GIVEN, STATED, SOURCE_MPP, GUESSED = "given", "stated", "source_mpp", "guessed"
MPP_SOURCES = (STATED, GIVEN, SOURCE_MPP, GUESSED)  # the most certain first, of what several tiles of a file may have
MPP_RANGE = (0.02, 50.0)  # um/px that a microscope may mean
COARSEST_TAG_MPP = 8.0  # of a tif's tags: an objective of 1.25x; 2400 dpi and less is beyond
# Finer than that an office knows 3200 to 9600 dots per inch, all of them round; 10,000 dpi (2.54 um/px) is a microscope's.
OFFICE_DPI, OFFICE_STEPS_DPI = 10_000.0, (100.0, 72.0)
UM_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0, 2: 25_400.0, 3: 10_000.0}  # by OpenSlide's words and tif's numbers


class Mpp(NamedTuple):
    """um/px of level 0 across and down, which differ where pixels are not square, and who says so."""

    x: float
    y: float
    source: str  # GIVEN, STATED, SOURCE_MPP or GUESSED

    @property
    def mean(self) -> float:
        return (self.x + self.y) / 2


def choose_mpp(
    *,
    given: float | None = None,
    stated: Mpp | None = None,
    source_mpp: float | None = None,
    guessed: Mpp | None = None,
) -> Mpp | None:
    """The one that holds, see above; None where there is none.

    Args:
        given: um/px by the user for this slide, row or image.
        stated: By the file: of `stated_mpp` or `mpp_of_tags`.
        source_mpp: um/px by the user for whatever states none.
        guessed: Of `guess_mpp`.
    """
    if given is not None:
        return Mpp(given, given, GIVEN)
    if stated is not None:
        return stated
    return guessed if source_mpp is None else Mpp(source_mpp, source_mpp, SOURCE_MPP)


def stated_mpp(x: float | None, y: float | None = None) -> Mpp | None:
    """What a file says in um/px, across and down (None: as across). None where no microscope can mean it."""
    x, y = (y if x is None else x), (x if y is None else y)
    return Mpp(float(x), float(y), STATED) if is_plausible_mpp(x) and is_plausible_mpp(y) else None


def mpp_of_tags(x_per_unit: float | None, y_per_unit: float | None, unit: str | int | None) -> Mpp | None:
    """What a tif's tags XResolution, YResolution and ResolutionUnit state; None where that is nothing, or a printer's.

    Args:
        x_per_unit: Pixels per unit across; `y_per_unit` down (None: as across).
        y_per_unit: See `x_per_unit`.
        unit: "inch", "centimeter", or the tag's 2, 3.
    """
    um_per_unit = UM_PER_UNIT.get(unit)
    x, y = ((y if x is None else x) for x, y in ((x_per_unit, y_per_unit), (y_per_unit, x_per_unit)))
    if um_per_unit is None or x is None:
        return None
    try:
        mpps = [um_per_unit / float(number) for number in (x, y)]
    except (TypeError, ValueError, ZeroDivisionError):
        return None  # malformed tags are no reason to refuse good pixels
    return stated_mpp(*mpps) if all(_is_microscopes(mpp) for mpp in mpps) else None


def guess_mpp(power: float | None) -> Mpp | None:
    """10 / objective power, the usual camera's um/px."""
    guess = 10.0 / power if power else None
    return Mpp(guess, guess, GUESSED) if is_plausible_mpp(guess) else None


def is_plausible_mpp(mpp: float | None) -> bool:
    """Whether a number can be micrometres per pixel of a microscope image."""
    return mpp is not None and MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


def check_mpp(mpp: float | None, where: str) -> None:
    """Refuse a typed number that cannot be micrometres per pixel; None is none. `where` begins the message."""
    if mpp is not None and not is_plausible_mpp(mpp):
        raise ConfigError(
            f"{where} is {mpp}: expected micrometres per pixel, between {MPP_RANGE[0]} and {MPP_RANGE[1]} "
            "(40x is about 0.25, 20x about 0.5)"
        )


def _is_microscopes(mpp: float) -> bool:
    """Whether a tif's tag may mean it: neither coarser than any objective nor a round number of an office's dots per inch."""
    if not 0 < mpp <= COARSEST_TAG_MPP:
        return False
    dpi = UM_PER_UNIT["inch"] / mpp
    is_round = any(math.isclose(dpi, step * round(dpi / step), rel_tol=1e-5) for step in OFFICE_STEPS_DPI)
    return dpi >= OFFICE_DPI * (1 - 1e-6) or not is_round
