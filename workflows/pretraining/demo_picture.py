"""The end of a demonstration: the student that has just been trained looks at a slide that it has not seen."""

import cv2
import pyarrow.parquet as pq

from csat.prediction.field import draw_nuclei
from csat.prediction.loaded import load
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.tasks import Task
from csat.tiles.manifest import Manifest
from workflows.pretraining.config import DEMO, DEMO_PICTURE, PretrainConfig

MOST_PX = 1024  # edge of the field, from the middle of the slide


def draw_demo(folder: RunFolder, config: PretrainConfig, holdout: Manifest | None) -> None:
    """Write the picture, of synthetic slides and a student that finds nuclei; of all other runs nothing."""
    if DEMO not in config.slides or holdout is None or not holdout.num_tiles or config.students:
        return
    model = load(folder.path("exported"))
    if model.task is not Task.NUCLEI:
        return
    store, path = files.arrow_filesystem(files.join(holdout.uri, holdout.shards[0]))
    slide = min(pq.read_table(path, columns=["slide"], filesystem=store)["slide"].to_pylist())
    edge_px = min(MOST_PX, config.demo.size_px)
    first = (config.demo.size_px - edge_px) // 2
    drawn, _ = draw_nuclei(model, slide, first, first, edge_px=edge_px)
    model.close()
    _, png = cv2.imencode(".png", drawn[..., ::-1])
    files.write_bytes(folder.path(DEMO_PICTURE), png.tobytes())
