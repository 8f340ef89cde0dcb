"""Were images that a model will be judged on among those that it was pretrained on?"""

from csat.data import storage
from csat.data.labelled import LabelledData
from csat.data.manifest import read_manifest
from csat.errors import DatasetError
from csat.model.registry import ModelConfig
from csat.training.run_folder import RunFolder

MOST_LISTED = 5
PARTS = ("val", "test")


def check_leakage(model: ModelConfig, data: LabelledData) -> None:
    """Compare the tiles that the initial run was trained on with the images of the validation and test parts.

    Images are recognised by their place below the data set's folder, so that a moved or copied set is recognised too.

    Raises:
        DatasetError: with the number of images, some of them, and what to do.
    """
    if model.from_run is None:
        return
    manifest_uri = RunFolder(model.from_run).path("manifest")
    if not storage.exists(storage.join(manifest_uri, "index.json")):
        return  # an exported folder, or a run that was itself trained on labels
    manifest = read_manifest(manifest_uri)
    seen = set()
    for index in range(len(manifest.chunks)):
        seen.update(manifest.read_chunk(*manifest.locate(index)).column("slide").unique().to_pylist())
    tails = {_tail(uri) for uri in seen}
    found = [sample.image for part in PARTS for sample in data.parts[part] if _tail(sample.image) in tails]
    if found:
        more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise DatasetError(
            f"{len(found)} images that the model would be judged on were in the pretraining of {model.from_run}: "
            f"{', '.join(found[:MOST_LISTED])}{more}. Pretrain on the training part only (--prepare_only true writes it as "
            "pretrain.csv), or say --accept_leakage true and report it"
        )


def _tail(uri: str) -> str:
    """The last three parts of a path: set, folder and file in most layouts."""
    return "/".join(uri.rsplit("/", 3)[-3:])
