"""Synthetic H&E slides with known nuclei: the demo, the tests and the evidence that a student learns nuclei.

A slide is painted in optical density space, as a stained section is: densities of haematoxylin and eosin are drawn, blurred
by the optics, and turned into light by Beer-Lambert (`I = I0 · exp(-(h·H + e·E))`, Ruifrok & Johnston 2001). The stain
vectors lie between Ruifrok & Johnston's and Macenko's (2009), with their own jitter and strength per slide, so a fixed
colour deconvolution is a decent teacher and not a perfect one.

What is painted: glands with pseudostratified epithelium (vesicular oval nuclei with a rim and nucleoli), wavy collagen with
spindle nuclei, lymphocytes (small, dark, also in aggregates), and eosin-only distractors: red cells and thick fibres. The
tissue is a ragged island on white glass. The truth is what was painted: one instance id per nucleus, at level 0.
"""

import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import tifffile

from csat.errors import ConfigError
from csat.slides.synthetic_scene import BLOCK_PX, MAP_MPP, MARGIN_CELLS, TEXTURE_PX, VERSION, Scene

LEVEL_FACTORS = (1, 4, 16)
TRUTH_SUFFIX = ".nuclei.png"


def make_slides(folder: str | Path, *, num_slides: int, size_px: int, mpp: float = 0.5, seed: int = 0) -> list[Path]:
    """Write `num_slides` pyramidal slides and their truth; those that are there already are left alone.

    Args:
        folder: Made when absent. Local.
        num_slides: How many; slide `i` is the same whatever this is.
        size_px: Edge of level 0.
        mpp: Resolution of level 0, um/px; everything is painted to that scale.
        seed: Of everything.

    Returns:
        The slides' paths (`.svs`: an Aperio-like tiled TIFF, JPEG, levels 1/4/16, mpp set); the truth of each lies beside it
        as `<stem>.nuclei.png`, uint16 `[size_px, size_px]`, 0 = no nucleus.

    Raises:
        ConfigError: a size or resolution out of range, or a slide of more nuclei than uint16 can name.
    """
    if num_slides < 1 or size_px < 256 or not 0.1 <= mpp <= 2.0:
        raise ConfigError(
            f"synthetic slides need num_slides >= 1, size_px >= 256 and 0.1 <= mpp <= 2, "
            f"not num_slides={num_slides}, size_px={size_px}, mpp={mpp}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(num_slides):
        path = folder / f"demo_v{VERSION}_{size_px}px_{round(mpp * 1000)}nm_seed{seed}_{index:03d}.svs"
        paths.append(path)
        if path.exists() and truth_path(path).exists():
            continue
        image, labels = paint(size_px, mpp=mpp, seed=seed, index=index)
        _commit(truth_path(path), lambda temporary, labels=labels: _write_truth(temporary, labels))
        _commit(path, lambda temporary, image=image: _write_pyramid(temporary, image, mpp))  # last: a slide has its truth
    return paths


def truth_path(slide: str | Path) -> Path:
    """Where the truth of a synthetic slide lies."""
    slide = Path(slide)
    return slide.with_name(slide.stem + TRUTH_SUFFIX)


def read_truth(slide: str | Path, x_px: int, y_px: int, size_px: int) -> np.ndarray | None:
    """Instance ids of a square of level 0: uint16 `[size_px, size_px]`, 0 outside the slide; None where there is no truth."""
    path = truth_path(slide)
    if not path.exists():
        return None
    labels = _load_truth(str(path), path.stat().st_mtime_ns)
    window = np.zeros((size_px, size_px), dtype=np.uint16)
    top, left = max(y_px, 0), max(x_px, 0)
    found = labels[top : max(y_px + size_px, 0), left : max(x_px + size_px, 0)]
    window[top - y_px : top - y_px + found.shape[0], left - x_px : left - x_px + found.shape[1]] = found
    return window


def paint(size_px: int, *, mpp: float = 0.5, seed: int = 0, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One slide in memory: image uint8 `[size_px, size_px, 3]` RGB and instance ids uint16 `[size_px, size_px]`."""
    scene = Scene(size_px, mpp, np.random.default_rng((VERSION, seed, index)))
    image = np.empty((size_px, size_px, 3), dtype=np.uint8)
    block_px = scene.block_cells * scene.cell_px
    for top in range(0, size_px, block_px):
        for left in range(0, size_px, block_px):
            height, width = min(block_px, size_px - top), min(block_px, size_px - left)
            image[top : top + height, left : left + width] = _paint_block(scene, left, top)[:height, :width]
    m = scene.margin_px
    return image, np.ascontiguousarray(scene.labels[m : m + size_px, m : m + size_px])


def _paint_block(scene: Scene, left: int, top: int) -> np.ndarray:
    """RGB of the block whose corner is (left, top) in level-0 px: uint8 `[B, B, 3]` without margin."""
    num_cells = scene.block_cells + 2 * MARGIN_CELLS
    side = num_cells * scene.cell_px
    first_row, first_column = top // scene.cell_px, left // scene.cell_px

    def region(area: np.ndarray) -> np.ndarray:
        cut = area[first_row : first_row + num_cells, first_column : first_column + num_cells].astype(np.float32)
        return cv2.resize(cut, (side, side), interpolation=cv2.INTER_LINEAR)

    x, y = (left + scene.offset_px[0]) % TEXTURE_PX, (top + scene.offset_px[1]) % TEXTURE_PX
    textures = _textures(scene.mpp)
    mottle, grain, chromatin, noise = (
        textures[name][y : y + side, x : x + side] for name in ("mottle", "grain", "chromatin", "noise")
    )
    fibre = _fibres(scene, region(scene.wave), left, top)
    labels = scene.labels[top : top + side, left : left + side]
    nucleus = (labels > 0).astype(np.uint8)

    # Ragged borders: the maps are coarse, so the texture decides where exactly tissue, epithelium and lumen end.
    tissue = _ragged(region(scene.tissue), grain, sharpness=4)
    epithelium = _ragged(region(scene.epithelium), grain, sharpness=3)
    lumen = _ragged(region(scene.lumen), mottle, sharpness=2)
    clefts = np.clip((fibre + 0.35 * mottle - scene.cleft_level) * 1.8, 0, 1) * (1 - epithelium)
    present = np.maximum(tissue * (1 - 0.93 * clefts) * (1 - 0.95 * lumen), nucleus)

    bundle = np.clip(-fibre - 0.3 * mottle - 0.6, 0, 2)
    eosin_stroma = 0.38 - 0.07 * fibre + 0.16 * bundle + 0.03 * grain + 0.05 * mottle
    eosin = eosin_stroma + (0.36 + 0.06 * mottle + 0.04 * grain - eosin_stroma) * epithelium
    haematoxylin = 0.06 + 0.02 * mottle + (scene.basophilia + 0.05 * mottle + 0.03 * grain) * epithelium
    red = scene.red_cells[top : top + side, left : left + side].astype(np.float32) / 255
    eosin = (eosin + 0.75 * red) * present
    haematoxylin = haematoxylin * present * (1 - 0.8 * (red > 0))

    nuclear = _nuclear_density(scene, labels, chromatin)
    inside = nucleus.astype(np.float32)
    haematoxylin = haematoxylin * (1 - inside) + nuclear
    eosin = eosin * (1 - 0.45 * inside)
    sigma_px = scene.blur_um / scene.mpp
    haematoxylin = cv2.GaussianBlur(haematoxylin, (0, 0), sigma_px)
    eosin = cv2.GaussianBlur(np.maximum(eosin, 0), (0, 0), sigma_px)

    rgb = np.empty((side, side, 3), dtype=np.float32)
    for channel in range(3):
        light = cv2.exp(-(haematoxylin * scene.stains[0, channel] + eosin * scene.stains[1, channel])) * scene.glass[channel]
        rgb[..., channel] = light + 2.0 * np.roll(noise, 331 * channel, axis=1)
    m = scene.margin_px
    return np.clip(np.round(rgb[m:-m, m:-m]), 0, 255).astype(np.uint8)


def _ragged(region: np.ndarray, texture: np.ndarray, *, sharpness: float) -> np.ndarray:
    """A region map (0-255) as a share in 0-1 whose border follows the texture, which is not seen away from the border."""
    share = region / 255
    return np.clip((share - 0.5 + 0.9 * texture * share * (1 - share)) * sharpness + 0.5, 0, 1)


def _nuclear_density(scene: Scene, labels: np.ndarray, chromatin: np.ndarray) -> np.ndarray:
    """Haematoxylin of the nuclei: pale inside with rim, clumps and nucleoli where vesicular, flat where not."""
    lone = (labels > 0).astype(np.uint8)
    lone[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    lone[1:] &= labels[1:] == labels[:-1]
    depth_um = cv2.distanceTransform(lone, cv2.DIST_L2, 3) * scene.mpp
    rim = np.exp(-((depth_um - 0.5) ** 2) / 0.5)
    nucleoli = np.clip(chromatin - 1.7, 0, 1) * (depth_um > 1.0)
    texture = -0.28 + 0.34 * rim + 0.17 * chromatin + 0.5 * nucleoli
    return scene.density[labels] * np.maximum(1 + scene.vesicular[labels] * texture, 0.35)


def _fibres(scene: Scene, wave_um: np.ndarray, left: int, top: int) -> np.ndarray:
    """The collagen texture, bent along the wave: float32, mean 0, deviation 1; high where there are gaps."""
    side = wave_um.shape[0]
    x = ((np.arange(side) + left) * scene.mpp).astype(np.float32)[None, :]
    y = ((np.arange(side) + top) * scene.mpp).astype(np.float32)[:, None]
    c, s = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))
    u = (x * c + y * s) / np.float32(scene.mpp)
    v = (y * c - x * s + wave_um) / np.float32(scene.mpp)
    # remap's coordinates are 16 bit: take whole periods off first.
    u -= np.floor(u.min() / TEXTURE_PX) * TEXTURE_PX
    v -= np.floor(v.min() / TEXTURE_PX) * TEXTURE_PX
    return cv2.remap(_textures(scene.mpp)["fibre"], u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


@lru_cache(maxsize=2)
def _textures(mpp: float) -> dict[str, np.ndarray]:
    """Textures of period TEXTURE_PX, float32, mean 0 and deviation 1; sizes are in um, as in tissue.

    "fibre" is one period; the others go on for as long as a block may reach, so that one is cut and never gathered.
    """
    rng = np.random.default_rng((VERSION, 77))

    def noise(*sigmas_um: tuple[float, float]) -> np.ndarray:
        total = 0
        for along_um, across_um in sigmas_um:
            white = np.fft.rfft2(rng.standard_normal((TEXTURE_PX, TEXTURE_PX)))
            fy = np.fft.fftfreq(TEXTURE_PX)[:, None] * across_um / mpp
            fx = np.fft.rfftfreq(TEXTURE_PX)[None, :] * along_um / mpp
            layer = np.fft.irfft2(white * np.exp(-2 * np.pi**2 * (fx**2 + fy**2)), s=(TEXTURE_PX, TEXTURE_PX))
            total = total + (layer - layer.mean()) / layer.std()
        return (total / total.std()).astype(np.float32)

    fibre = noise((9.0, 0.8), (9.0, 0.8), (24.0, 2.2))
    others = {
        "mottle": noise((3.0, 3.0), (10.0, 10.0)),
        "grain": noise((0.6, 0.6), (1.6, 1.6)),
        "chromatin": noise((0.55, 0.55)),
        "noise": noise((0.4 * mpp, 0.4 * mpp)),  # the sensor's: in pixels
    }
    reach = BLOCK_PX + 2 * MARGIN_CELLS * round(MAP_MPP / mpp)
    return {name: np.pad(texture, (0, reach), mode="wrap") for name, texture in others.items()} | {"fibre": fibre}


def _write_pyramid(path: Path, image: np.ndarray, mpp: float) -> None:
    """Tiled TIFF of three levels that OpenSlide opens as Aperio, with mpp and magnification."""
    height, width = image.shape[:2]
    description = f"Aperio Image Library v11.2.1\r\n{width}x{height} synthetic H&E|AppMag = {10 / mpp:g}|MPP = {mpp:.4f}"
    options = dict(tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 90}, software="csat")
    options |= dict(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER", metadata=None)
    with tifffile.TiffWriter(path) as tiff:
        for factor in LEVEL_FACTORS:
            size = (max(1, width // factor), max(1, height // factor))
            level = image if factor == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            tiff.write(level, description=description, **options)


def _write_truth(path: Path, labels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    path.write_bytes(data.tobytes())


@lru_cache(maxsize=2)
def _load_truth(path: str, mtime_ns: int) -> np.ndarray:
    """The whole truth of one slide, kept while its tiles are read; `mtime_ns` makes a rewritten file another entry."""
    return cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)


def _commit(path: Path, write) -> None:
    """Write beside, then rename: a killed run leaves no half slide."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
