"""Opens what was trained or exported here, so that it answers tiles: a run folder, an exported folder, an ONNX file."""

from typing import Any

from csat.errors import ConfigError
from csat.licences import licence_of
from csat.model.contract import Model
from csat.model.files import EXPORTED, exported_folder, load_model, local_copy, read_model_config, sha256_of_weights
from csat.prediction.answers import About, Answers, ModelAnswers
from csat.shipped import is_shipped
from csat.storage import files

ONNX = ".onnx"


def open_answers(
    place: str,
    *,
    tile_px: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    name: str | None = None,
) -> Answers:
    """A trained model, ready to be shown tiles.

    Args:
        place: Run folder of pretrain.py or finetune.py, exported folder, or ONNX file of export.py, a path or a URI; or the
            name of a model that comes with the package.
        tile_px: Edge of the tiles; None: as it was trained.
        device: As torch names it.
        precision: float32 or bfloat16 (autocast); an ONNX file has its own.
        threads: Of an ONNX session on the CPU; None: as many as there are cores.
        name: What it is called; None: as its run or its file.

    Raises:
        ConfigError: there is no model, or it does not take such tiles; says what there is.
    """
    place = place if is_shipped(place) else files.normalise(place)
    if place.endswith(ONNX):
        from csat.prediction.onnx_answers import OnnxAnswers  # onnxruntime is an extra

        return OnnxAnswers(place, tile_px=tile_px, device=device, threads=threads)
    folder = exported_folder(place)
    with local_copy(folder) as copy:
        config = read_model_config(str(copy))
        model, sha256 = load_model(str(copy)), sha256_of_weights(copy, config)
    metadata = config.get("metadata") or {}
    about = About(name=name or _name_of(place), source=place, licence=licence_of(metadata), sha256=sha256)
    tile_px = _tile_px(model, metadata, tile_px, place)
    return ModelAnswers(model, tile_px=tile_px, device=device, precision=precision, metadata=metadata, about=about)


def _tile_px(model: Model, metadata: dict[str, Any], asked: int | None, place: str) -> int:
    tile_px = asked or metadata.get("tile_px")
    if tile_px is None:
        raise ConfigError(f"{place} was trained on whole images, not on tiles of one size: say which, as in tile_px 512")
    try:
        model.check_tile(tile_px)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return tile_px


def _name_of(place: str) -> str:
    """A folder `exported` is called as the run that it is in."""
    parts = [part for part in place.rstrip("/").split("/") if part]
    return parts[-2] if parts[-1] == EXPORTED and len(parts) > 1 else parts[-1]
