"""Method coco's paraphrasers within a run: where they lie, whether they are there, and how they get into the method."""

from csat.methods.coco.coco import CoCo
from csat.methods.coco.paraphrasers import are_there, load_paraphrasers
from csat.methods.contract import Method
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from workflows.finetuning.config import FinetuneConfig


def has_paraphrasers(method: Method) -> bool:
    """Whether the method compares paraphrased maps."""
    return isinstance(method, CoCo) and method.config.has_paraphrasers


def paraphraser_folder(method: CoCo, config: FinetuneConfig) -> str:
    """URI of the folder: the one that the settings name, or the run's own."""
    return method.config.paraphrasers or RunFolder(config.run_folder).path("paraphrasers")


def are_missing(method: Method, config: FinetuneConfig) -> bool:
    """Whether this run has to train paraphrasers first."""
    if not has_paraphrasers(method) or method.config.paraphrasers is not None:
        return False
    return not are_there(paraphraser_folder(method, config))


def ready_paraphrasers(method: Method, config: FinetuneConfig, teacher: TeacherSpec | None) -> None:
    """Put trained paraphrasers into a method that compares paraphrased maps.

    Raises:
        ConfigError: there are none, or those of another teacher or student.
    """
    if has_paraphrasers(method):
        load_paraphrasers(method.paraphrasers, paraphraser_folder(method, config), teacher_sha256=teacher.weights_sha256)
