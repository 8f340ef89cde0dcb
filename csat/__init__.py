"""Distil slow pathology teachers into tiny students; and use what was trained.

    import csat

    model = csat.load("runs/nuclei")                 # a run, an exported folder or an ONNX file; local or s3://…
    tile = model.on("slide.svs", 1_200, 900)      # the tile at these level-0 pixels, at the model's resolution
    said = model(tile)                               # {"np": float32 [1, H, W], "hv": …, "tp": …}: the transform is in it
    for nucleus in model.nuclei(tile):
        print(nucleus.type, nucleus.x, nucleus.y, nucleus.area_um2)

The verbs that train, judge and predict are the command `csat`. `import csat.model` registers the `csat` models with timm.
Importing this package loads nothing else: torch comes with the first model.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csat.prediction.loaded import Loaded

__all__ = ["load"]


def load(place: str, *, tile_px: int | None = None, device: str = "cpu", precision: str = "float32") -> "Loaded":
    """Load a trained model, ready to be shown tiles.

    Args:
        place: A run folder of pretrain.py or finetune.py, an exported folder, or an ONNX file of export.py, a path or a URI.
            Or the name of a model that comes with the package (`csat.shipped.names()`).
        tile_px: Edge of the tiles that it will be shown; None: as it was trained.
        device: As torch names it: "cpu", "cuda".
        precision: "float32", or "bfloat16" for speed where the device has it.

    Returns:
        A model to be called with a tile (uint8 `[tile_px, tile_px, 3]`, a Pillow image, a torch tensor): `model(tile)` is a
        dict of what it says, `model.nuclei(tile)` the single nuclei, `model.on(slide, x, y)` a tile of a slide. See
        `csat.prediction.loaded.Loaded`.

    Raises:
        csat.errors.ConfigError: there is no model, or it does not take such tiles; says what was found.
    """
    from csat.prediction.loaded import load as load_model

    return load_model(place, tile_px=tile_px, device=device, precision=precision)
