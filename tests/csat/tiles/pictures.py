"""Pictures on disk to be tiled."""

import io

from PIL import Image

from csat.tiles.sources import SlideRow


def save_image(path, array, **options) -> SlideRow:
    """Write a picture; its row."""
    Image.fromarray(array).save(path, **options)
    return SlideRow(slide=str(path), kind="image")


def png_of(array) -> bytes:
    """A picture as a file's bytes."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()
