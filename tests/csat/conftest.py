"""What the tests of the slides and tiles share: small pyramids."""

import pytest
import tifffile


@pytest.fixture(scope="session")
def write_slide():
    """`write_slide(path, pixels, mpp=0.5, shrinks=(1, 4), **kwargs)` writes a lossless, tiled pyramid for OpenSlide."""

    def write(path, pixels, *, mpp=0.5, shrinks=(1, 4), description=None, **kwargs):
        resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as writer:
            for shrink in shrinks:
                writer.write(
                    pixels[::shrink, ::shrink],
                    tile=(256, 256),
                    photometric="rgb",
                    compression="zlib",
                    subfiletype=int(shrink > 1),
                    description=description or "",
                    metadata=None,
                    **resolution,
                    **kwargs,
                )
        return path

    return write
