import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import WorkerCrashedError

from csat.errors import ConfigError, NonFiniteLossError
from csat.settings import UnknownSettingError, free_keys, valid_keys
from workflows.comparison.config import EvaluateConfig
from workflows.diagnosis.config import DoctorConfig
from workflows.exporting.config import ExportConfig
from workflows.finetuning.config import FinetuneConfig
from workflows.prediction.config import PredictConfig
from workflows.pretraining.config import PretrainConfig
from workflows.rates.config import BenchmarkConfig
from workflows.shell import command_line
from workflows.shell.config import TeacherConfig
from workflows.shell.help import field_notes
from workflows.sweep.config import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 0.1  # rate of learning


@dataclass(frozen=True, kw_only=True)
class Verb:
    run_folder: str  # where
    teacher: TeacherConfig
    optim: Optim = field(default_factory=Optim)  # how
    slides: list[str] = field(default_factory=list)  # which


FREE_OF_TRAINING = [
    f"train.{name}"
    for name in ("log_every_steps", "checkpoint_every_s", "checkpoint_every_steps", "keep_checkpoints", "compile")
]
BASE = ["--run_folder", "x", "--teacher", "stain"]


def test_short_forms_and_overrides():
    config = command_line.parse(Verb, "", [*BASE, "--optim.lr=0.5", "--teacher.options.mode", "fast"])
    assert config.teacher.name == "stain"
    assert config.optim.lr == 0.5
    assert config.teacher.options == {"mode": "fast"}


def test_what_is_a_short_form_elsewhere_may_be_a_setting():
    @dataclass(frozen=True, kw_only=True)
    class Of:
        """A verb that is about one model."""

        model: str  # which one

    assert command_line.parse(Of, "", ["--model", "runs/x"]).model == "runs/x"


@pytest.mark.parametrize("arguments", [["--teacher", "null"], ["--teacher=null"]])
def test_null_switches_off_what_a_recipe_says(tmp_path, arguments):
    @dataclass(frozen=True, kw_only=True)
    class Optional:
        """A verb that needs no teacher."""

        teacher: TeacherConfig | None = None  # whom it asks

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("teacher: {name: hovernet, options: {mode: fast}}")
    assert command_line.parse(Optional, "", ["--config", str(recipe)]).teacher.options == {"mode": "fast"}
    assert command_line.parse(Optional, "", ["--config", str(recipe), *arguments]).teacher is None


@pytest.mark.parametrize(
    ("arguments", "slides"),
    [
        (["--slides", "a.svs"], ["a.svs"]),
        (["--slides=a.svs"], ["a.svs"]),
        (["--slides", "a.svs", "folder/", "s3://b/*.svs", "--optim.lr", "1"], ["a.svs", "folder/", "s3://b/*.svs"]),
        (["--slides", '["a.svs", "b.svs"]'], ["a.svs", "b.svs"]),
        (["--slides=[a.svs, b.svs]"], ["a.svs", "b.svs"]),
        (["--slides", "Pr\udce4.svs", "b.svs"], [r"Pr\xe4.svs", "b.svs"]),  # what a shell makes of *.svs
        ([r"--slides=Pr\xe4.svs"], [r"Pr\xe4.svs"]),
        ([], []),
    ],
)
def test_lists_as_people_write_them(arguments, slides):
    assert command_line.parse(Verb, "", [*BASE, *arguments]).slides == slides


def test_a_list_or_names(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Comparison:
        runs: list[str] | dict[str, Any]  # which

    for arguments, runs in (
        (["--runs", "a", "b"], ["a", "b"]),
        (["--runs=a"], ["a"]),
        (["--runs", "{x: [a, b], y: c}"], {"x": ["a", "b"], "y": "c"}),
    ):
        assert command_line.parse(Comparison, "", arguments).runs == runs


def test_a_recipe_and_an_override(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teacher: {name: hovernet, options: {mode: fast}}\noptim: {lr: 0.2}\n")
    config = command_line.parse(Verb, "", ["--config", str(recipe), "--run_folder", "y", "--optim.lr", "0.3"])
    assert (config.teacher.name, config.teacher.options, config.optim.lr) == ("hovernet", {"mode": "fast"}, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BASE, "--optim.lrr", "1"], r"no setting 'optim.lrr'. Did you mean optim.lr"),
        ([*BASE, "--optim.lr", "fast"], "optim.lr"),
        (["--run_folder", "x"], "teacher"),
        ([], "run_folder"),
        (["--config", "nowhere.yaml"], "there is no recipe 'nowhere.yaml': give a YAML file, or one of: .*demo"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        command_line.parse(Verb, "", arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rate: 1}", r"no setting 'optim.learning_rate'.*Settings are: run_folder, teacher.name"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_recipes(tmp_path, text, message):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        command_line.parse(Verb, "", ["--config", str(recipe), *BASE])


def test_every_setting_of_the_verbs_is_explained():
    pages = (PretrainConfig, DoctorConfig, FinetuneConfig, BenchmarkConfig, EvaluateConfig, SweepConfig, PredictConfig)
    for config_class in (*pages, ExportConfig):
        notes = field_notes(config_class)
        assert [key for key in valid_keys(config_class) if key not in notes] == []


@pytest.mark.parametrize(
    ("config_class", "free"),
    [
        (
            PretrainConfig,
            {"readers", "pool", "teachers.NAME.pool", "workers", "cache.budget_gb", "report_tiles", "plan", *FREE_OF_TRAINING},
        ),
        (
            FinetuneConfig,
            {
                "readers",
                "pool",
                "workers",
                "report_samples",
                "prepare_only",
                "neighbours_only",
                "data.memory_gb",
                *FREE_OF_TRAINING,
            },
        ),
        (EvaluateConfig, {"report_samples", "data.memory_gb"}),
        (PredictConfig, {"readers", "network", "outlines", "assembly", "show"}),
        (SweepConfig, {"max_concurrent", "cpus_per_trial", "gpus_per_trial", "mlflow", "questions", "only"}),
    ],
)
def test_what_may_differ_when_a_run_is_resumed(config_class, free):
    """How the work is spread over machines and how often it is reported, never what is learned from what."""
    keys = free_keys(config_class)
    folder = "output" if config_class is PredictConfig else "run_folder"
    assert {key for key in keys if key.rpartition(".")[0] not in keys} == free | {folder, "overwrite", "ray"}


def test_print_config_shows_settings_and_no_flags_of_output(capsys):
    with pytest.raises(SystemExit):
        command_line.parse(Verb, "", [*BASE, "--quiet", "--log", "json", "--print_config"])
    said = capsys.readouterr().out
    assert "lr: 0.1" in said and "quiet" not in said and "log" not in said


@dataclass(frozen=True, kw_only=True)
class Nest:
    run_folder: str  # where
    base: dict[str, Any] = field(default_factory=dict)  # anything


def nest(*arguments):
    return command_line.parse(
        Nest, "", ["--run_folder=x", *arguments], nested={"base": lambda said, change: {**said, **change}}
    )


def test_one_value_below_a_free_mapping_leaves_the_others(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: {a.b: 1, c: 2}")
    config = nest("--config", str(recipe), "--base.a.b", "3", "--base.d.e={f: [1]}")
    assert config.base == {"a.b": 3, "c": 2, "d.e": {"f": [1]}}
    assert nest("--base.a", "text").base == {"a": "text"}
    assert nest("--base", "{a: 1}", "--base.b=2").base == {"a": 1, "b": 2}


@pytest.mark.parametrize(("arguments", "words"), [(["--base.a"], "needs a value"), (["--base.a", "{"], "not YAML")])
def test_a_value_below_a_free_mapping_that_cannot_be_read(arguments, words):
    with pytest.raises(ConfigError, match=words):
        nest(*arguments)


def test_the_printed_configuration_has_it(capsys):
    with pytest.raises(SystemExit):
        nest("--base.a.b", "3", "--print_config")
    assert "a.b: 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("tile_px must be even"), 2, "error: tile_px must be even"),
        (ConfigError("optim.lr must be above 0"), 2, "error: --optim.lr must be above 0"),
        (UnknownSettingError("did you mean optim.lr"), 2, "error: did you mean optim.lr"),
        (NonFiniteLossError("step 3: loss is not finite"), 1, "stopped: step 3"),
        (WorkerCrashedError(), 1, "Ray stopped: The worker died unexpectedly"),
        (KeyboardInterrupt(), 130, "run the same command to resume"),
    ],
)
def test_how_a_verb_ends(capsys, error, code, words):
    def work(config):
        raise error

    assert command_line.run(work, Verb, "", BASE) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_what_is_logged_spells_settings_as_errors_do(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def work(config):
        logging.getLogger("csat").warning("%s: lower optim.lr", "a/optim.lr")
        return 0

    assert command_line.run(work, Verb, "", BASE) == 0
    assert capsys.readouterr().err.endswith("WARNING a/optim.lr: lower --optim.lr\n")
