"""What an interrupted run keeps, in words: read from its run folder, whoever ended it and how."""

from csat.prediction.layout import Layout
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.storage import files
from csat.sweeps.trial import ENDED

INTERRUPTED = "interrupted"


def kept_of_run(uri: str) -> str:
    """Of a run of pretrain.py or finetune.py. Its status says from now on that it was interrupted."""
    folder = RunFolder(uri)
    status = (folder.read_json("status.json") or {}).get("state")
    if status == "finished":
        return "all of it, the run is finished"
    if status == "running":
        folder.set_status(INTERRUPTED)
    trained = _trained(folder)
    if trained is None and (stage := _first_stage(folder)):
        return stage
    if trained is None and files.exists(folder.path("manifest", "index.json")):
        return "the manifest of tiles, and nothing trained yet"
    return trained or "nothing trained yet"


def kept_of_prediction(uri: str) -> str:
    """Of a run of predict.py. Its status says from now on that it was interrupted."""
    folder, layout = RunFolder(uri), Layout(uri)
    status = (folder.read_json("status.json") or {}).get("state")
    if status == "finished":
        return "all of it, the prediction is finished"
    if status == "running":
        folder.set_status(INTERRUPTED)
    if not files.exists(folder.path("manifest", "index.json")):
        return "nothing: it starts from the beginning"
    num_tiles = sum(map(len, layout.parts.done().values()))
    return f"the files of {len(layout.done()):,} slides, and what was said of {num_tiles:,} tiles of others"


def kept_of_sweep(uri: str) -> str:
    """Of a run of tune.py."""
    folder = RunFolder(uri)
    if (folder.read_json("status.json") or {}).get("state") == "running":
        folder.set_status(INTERRUPTED)
    pattern = folder.path("cells", "*", "*", "*", "*", "status.json")
    runs = [RunFolder(path.removesuffix("/status.json")) for path in files.glob(pattern)]
    states = [run.read_json("status.json")["state"] for run in runs]
    begun = [_trained(run) for run, state in zip(runs, states, strict=True) if state not in ENDED]
    ended = f"{len(runs) - len(begun)} runs that have ended"
    return "; ".join([ended, *(f"of one that has not, {trained or 'nothing yet'}" for trained in begun)])


def _first_stage(folder: RunFolder) -> str | None:
    """Of what a method has trained before it, in a folder of its own with its own checkpoints."""
    for path in files.glob(folder.path("*", "checkpoints", "latest.json")):
        stage = RunFolder(path.removesuffix("/checkpoints/latest.json"))
        if trained := _trained(stage):
            return f"of the {files.base_name(stage.uri)}, which are trained first, {trained}"
    return None


def _trained(folder: RunFolder) -> str | None:
    """Of one stage with checkpoints; None where none is committed."""
    cursor = Checkpoints(folder.path("checkpoints")).latest_cursor()
    if not cursor.done:
        return None
    metrics = read_metrics(folder.uri)
    total = f" of {metrics[-1]['tiles_total']:,}" if metrics else ""
    return f"{len(cursor.done):,}{total} tiles, in the checkpoint of step {cursor.step}"
