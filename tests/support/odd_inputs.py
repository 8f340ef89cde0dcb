"""A folder with the inputs that users really have, each odd in its own way, and small."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from PIL import Image

EDGE_PX = 256
MPP = 0.5  # um/px of what states no resolution
TILE_PX = 64
SCANNERS_MPP = (0.465, 0.5054, 0.526)  # what 20x is, by scanner
# Name → tiles of TILE_PX at MPP; 0: quarantined.
TILES = {
    "good.png": 16,
    r"Pr\xe4parat.png": 16,  # a Latin-1 byte
    "turned.tif": 8,  # 256 x 128 px, as its tag turns it
    "planes.ome.tif": 16,
    "photo.tif": 16,
    "power.svs": 16,
    **dict(zip([f"scanner{mpp}.svs" for mpp in SCANNERS_MPP], (9, 16, 16), strict=True)),
    "two.parquet": 2 * 4 + 2 * 16,
    "broken.png": 0,
    "empty.svs": 0,
    "slide.dcm": 0,
}
PATIENTS = [11, None, 12, 12, 12]  # of two.parquet
MISFIT = "two.parquet, row 4, column mpp"  # begins the message of its row that is quarantined
# Ending or name → how many are passed over.
PASSED_OVER = {".xml": 2, "file that belongs to a slide": 1, "@eaDir": 1, ".DS_Store": 1}


def make_odd_inputs(folder: Path) -> Path:
    """Fill the folder with `TILES` and `PASSED_OVER`."""
    image = tissue()
    for name in (b"good.png", b"Pr\xe4parat.png"):
        (folder / os.fsdecode(name)).write_bytes(encoded(image, "PNG"))
    tifffile.imwrite(folder / "turned.tif", image[: EDGE_PX // 2], photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    _planes(folder / "planes.ome.tif", image)
    Image.fromarray(image).save(folder / "photo.tif", dpi=(600, 600), compression="tiff_lzw")
    _aperio(folder / "power.svs", image, "AppMag = 20")
    for mpp in SCANNERS_MPP:
        _aperio(folder / f"scanner{mpp}.svs", image, f"AppMag = 20|MPP = {mpp}")
    columns = {"image": [encoded(image, "JPEG")] * 5, "patient": pa.array(PATIENTS), "mpp": [0.25, 0.25, 0.5, 0.5, 9.0]}
    pq.write_table(pa.table(columns), folder / "two.parquet")
    (folder / "broken.png").write_bytes(encoded(image, "PNG")[:1000])
    (folder / "empty.svs").touch()
    (folder / "slide.dcm").write_bytes(bytes(128) + b"DICM")
    for name in ("annotations.xml", "power.XML", ".DS_Store"):
        (folder / name).touch()
    (folder / "power.jpg").write_bytes(encoded(image, "JPEG"))
    (folder / "@eaDir" / "good.png").mkdir(parents=True)
    (folder / "@eaDir" / "good.png" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encoded(image, "JPEG"))
    return folder


def tissue() -> np.ndarray:
    """uint8 `[256, 256, 3]`, RGB: eosin with haematoxylin in it, all over."""
    image = np.full((EDGE_PX, EDGE_PX, 3), (176, 112, 172), np.uint8)
    image[np.random.default_rng(0).random((EDGE_PX // 4, EDGE_PX // 4)).repeat(4, 0).repeat(4, 1) < 0.3] = (72, 52, 120)
    return image


def encoded(image: np.ndarray, kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind)
    return data.getvalue()


def _aperio(path: Path, image: np.ndarray, properties: str) -> None:
    description = f"Aperio Image Library v12\r\n256x256 [0,0 256x256] (256x256) JPEG/RGB Q=70|{properties}"
    options = dict(photometric="rgb", metadata=None)
    with tifffile.TiffWriter(path) as file:
        file.write(image, tile=(256, 256), compression="jpeg", description=description, **options)
        file.write(image[::2, ::2], **options)  # the thumbnail, which Aperio has


def _planes(path: Path, image: np.ndarray) -> None:
    about = {"axes": "CYX", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP, "Channel": {"Name": ["Red", "Green", "Blue"]}}
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    resolution = dict(resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER")
    tifffile.imwrite(path, planes, photometric="minisblack", ome=True, tile=(256, 256), metadata=about, **resolution)
