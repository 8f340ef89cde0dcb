"""What peers and ceiling are measured with: images in one folder, a teacher's weights; and what counts as steady."""

from collections.abc import Sequence
from pathlib import Path

import cv2

from csat.columns import OK, STATUS, TILE
from csat.errors import ConfigError
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.planned_reader import columns_of
from csat.tiles.reader import TileReader
from csat.tiles.sources import IMAGE_SUFFIXES, list_slides
from csat.tiles.tiling import tile_slide
from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.contenders import TEACHER, TILE_PX

FEWEST_IMAGES = 128  # of a measurement: two steps are in its middle
MIDDLE = (0.2, 0.9)  # of the images: what counts as steady
SYNTHETIC_PX, TILES_OF_SLIDE = 4096, 150  # edge of a synthetic slide, and tiles that it has at least


def gather_images(config: BenchmarkConfig, folder: Path) -> int:
    """Put the images into one flat folder, `images` in the given one. Returns their number.

    Raises:
        ConfigError: too few.
    """
    images = folder / "images"
    images.mkdir()
    if config.images is None:
        _cut_images(folder / "slides", images, config.num_images)
    else:
        found = [path for path in sorted(Path(config.images).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        number = min(len(found), config.num_images)
        for index in range(number):
            path = found[index * len(found) // number]
            (images / f"{index:06d}{path.suffix}").symlink_to(path.resolve())
    number = len(list(images.iterdir()))
    if number < FEWEST_IMAGES:
        where = config.images or "the synthetic slides"
        raise ConfigError(f"images: {number} images were found in {where}, and {FEWEST_IMAGES} are needed")
    return number


def make_teacher(path: Path, seed: int) -> None:
    """One file of random weights for everybody: they cost the same as trained ones."""
    net = f"net = timm.create_model('{TEACHER}', img_size={TILE_PX}, num_classes=0)"
    run(["-c", f"import timm, torch; torch.manual_seed({seed}); {net}; torch.save(net.state_dict(), '{path}')"])


def steady(steps: Sequence[tuple[int, float]]) -> float:
    """Images/s in the middle of a run.

    Args:
        steps: Images and seconds of each step, in order.

    Raises:
        ConfigError: there is no step in the middle.
    """
    total = sum(number for number, _ in steps)
    done, images, seconds = 0, 0, 0.0
    for number, took in steps:
        if done >= MIDDLE[0] * total and done + number <= MIDDLE[1] * total:
            images, seconds = images + number, seconds + took
        done += number
    if not seconds:
        raise ConfigError(f"{total} images are {len(steps)} steps, of which none is in the middle: give more images")
    return images / seconds


def _cut_images(scratch: Path, folder: Path, number: int) -> None:
    """So many jpegs out of synthetic slides."""
    made = make_slides(scratch, num_slides=1 + number // TILES_OF_SLIDE, size_px=SYNTHETIC_PX)
    reader, index = TileReader(tile_px=TILE_PX), 0
    for slide in list_slides([str(path) for path in made]):
        read = reader(columns_of(tile_slide(slide, TilingConfig(tile_px=TILE_PX))))
        for tile in read[TILE][read[STATUS] == OK][: number - index]:
            cv2.imwrite(str(folder / f"{index:06d}.jpg"), cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))
            index += 1
