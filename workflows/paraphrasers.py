"""Method coco's paraphrasers within a run: where they lie, whether they are there, and how they get into the method."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from csat.data import storage
from csat.methods.coco import CoCo
from csat.methods.contract import Method
from csat.model.paraphraser_files import are_there, load_paraphrasers
from csat.responses import TeacherSpec
from csat.training.run_folder import RunFolder

if TYPE_CHECKING:
    from workflows.finetune import FinetuneConfig


def with_paraphrasers_found(config: "FinetuneConfig", plain: dict[str, Any]) -> tuple["FinetuneConfig", dict[str, Any]]:
    """The folder that `method.options.paraphrasers` names, made absolute: other processes start in other folders.

    Args:
        plain: `config` as plain values.
    """
    folder = config.method.options.get("paraphrasers")
    if not isinstance(folder, str):
        return config, plain
    options = {**config.method.options, "paraphrasers": storage.normalise(folder)}
    plain = {**plain, "method": {**plain["method"], "options": options}}
    return replace(config, method=replace(config.method, options=options)), plain


def has_paraphrasers(method: Method) -> bool:
    """Whether the method compares paraphrased maps."""
    return isinstance(method, CoCo) and method.config.has_paraphrasers


def paraphraser_folder(method: CoCo, config: "FinetuneConfig") -> str:
    """URI of the folder: the one that the settings name, or the run's own."""
    return method.config.paraphrasers or RunFolder(config.run_folder).path("paraphrasers")


def are_missing(method: Method, config: "FinetuneConfig") -> bool:
    """Whether this run has to train paraphrasers first."""
    if not has_paraphrasers(method) or method.config.paraphrasers is not None:
        return False
    return not are_there(paraphraser_folder(method, config))


def ready_paraphrasers(method: Method, config: "FinetuneConfig", teacher: TeacherSpec | None) -> None:
    """Put trained paraphrasers into a method that compares paraphrased maps.

    Raises:
        ConfigError: there are none, or those of another teacher or student.
    """
    if has_paraphrasers(method):
        load_paraphrasers(method.paraphrasers, paraphraser_folder(method, config), teacher_sha256=teacher.weights_sha256)
