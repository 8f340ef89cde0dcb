"""Which files are written for each slide: what the model can give, what is written by itself, and what the user asked for."""

from collections.abc import Callable, Sequence

from csat.errors import ConfigError
from csat.responses import Kind
from csat.tasks import Task
from workflows.prediction.description import Description

NUCLEI_GEOJSON, NUCLEI = "nuclei.geojson.gz", "nuclei.parquet"
CELLS_GEOJSON, CENTROIDS_GEOJSON = "cells.geojson.gz", "nuclei-centroids.geojson.gz"
TILES_GEOJSON, TILES = "tiles.geojson.gz", "tiles.parquet"
HEATMAP, HEATMAP_PNG, MASK, EMBEDDINGS = "heatmap.ome.tif", "heatmap.png", "mask.ome.tif", "embeddings.parquet"
NP, HV, TP, LABEL, CLASS_MASK = "np", "hv", "tp", "label", "mask"

# File → the answers that it is made of, by name; () where the model has none to make it of.
SOURCES: dict[str, Callable[[Description], tuple[str, ...]]] = {
    NUCLEI_GEOJSON: lambda model: _nuclei(model),
    NUCLEI: lambda model: _nuclei(model),
    CELLS_GEOJSON: lambda model: _nuclei(model),
    CENTROIDS_GEOJSON: lambda model: _nuclei(model),
    TILES_GEOJSON: lambda model: _have(model, LABEL),
    TILES: lambda model: _have(model, LABEL),
    HEATMAP: lambda model: heat_source(model),
    HEATMAP_PNG: lambda model: heat_source(model),
    MASK: lambda model: _have(model, CLASS_MASK),
    EMBEDDINGS: lambda model: tuple(spec.name for spec in model.specs if spec.kind == Kind.FEATURES and not spec.is_dense)[:1],
}
# Written where nothing was said, by task; None: a model that is made for none.
DEFAULTS: dict[Task | None, tuple[str, ...]] = {
    Task.NUCLEI: (NUCLEI_GEOJSON, NUCLEI),
    Task.CLASSIFICATION: (TILES_GEOJSON, TILES, HEATMAP, HEATMAP_PNG),
    Task.SEGMENTATION: (MASK, HEATMAP, HEATMAP_PNG),
    None: (EMBEDDINGS, HEATMAP, HEATMAP_PNG),
}


def possible_files(model: Description) -> list[str]:
    """What can be written of what this model says."""
    return [file for file, source in SOURCES.items() if source(model)]


def chosen_files(write: Sequence[str], model: Description) -> tuple[str, ...]:
    """The files that are written for each slide.

    Args:
        write: As the user gave it: files, or what stands before their first point ("nuclei" for both of nuclei); empty: those
            that suit the model's task.

    Raises:
        ConfigError: a name that is none, or what this model cannot give; says what it can.
    """
    can = possible_files(model)
    answers = ", ".join(spec.name for spec in model.specs) or "nothing that is kept"
    if not can:
        raise ConfigError(f"{model.name} answers {answers}: there is no file to be made of it")
    if not write:
        return tuple(file for file in DEFAULTS[model.task] if file in can) or tuple(can)
    wanted: list[str] = []
    for name in write:
        named = [file for file in SOURCES if name in (file, file.partition(".")[0])]
        if not named:
            raise ConfigError(
                f"write names {name!r}, which is no file that is written; {model.name} can give: {', '.join(can)}"
            )
        given = [file for file in named if file in can]
        if not given:
            raise ConfigError(f"write names {name!r}, and {model.name} answers {answers}: it can give {', '.join(can)}")
        wanted += given
    if {NUCLEI_GEOJSON, CELLS_GEOJSON, CENTROIDS_GEOJSON} & set(wanted):
        wanted.append(NUCLEI)  # they are made of it
    return tuple(file for file in SOURCES if file in wanted)


def needed_answers(files: Sequence[str], model: Description) -> tuple[str, ...]:
    """Names of the answers that these files are made of, in the model's order."""
    needed = {name for file in files for name in SOURCES[file](model)}
    return tuple(spec.name for spec in model.specs if spec.name in needed)


def heat_source(model: Description) -> tuple[str, ...]:
    """The answer that a heatmap shows: classes of pixels, else of tiles, else where nuclei are; () where there is none."""
    return next((found for name in (CLASS_MASK, LABEL, NP) if (found := _have(model, name))), ())


def _nuclei(model: Description) -> tuple[str, ...]:
    return tuple(filter(model.spec, (NP, HV, TP))) if model.task is Task.NUCLEI else ()


def _have(model: Description, name: str) -> tuple[str, ...]:
    return (name,) if model.spec(name) else ()
