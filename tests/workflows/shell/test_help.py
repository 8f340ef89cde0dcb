"""What `--help` shows, in which order, and that nothing is missing from `--help all`."""

import re
import shutil
import sys
from dataclasses import dataclass, field

import pytest

from csat.settings import Often, settings_of
from workflows.comparison.config import EvaluateConfig
from workflows.diagnosis.config import DoctorConfig
from workflows.exporting.config import ExportConfig
from workflows.finetuning.config import FinetuneConfig
from workflows.prediction.config import PredictConfig
from workflows.pretraining.config import PretrainConfig
from workflows.rates.config import BenchmarkConfig
from workflows.shell import command_line
from workflows.shell.config import TeacherConfig
from workflows.shell.help import SHORT_FORMS
from workflows.sweep.config import SweepConfig

CONFIGS = (
    *(PretrainConfig, FinetuneConfig, BenchmarkConfig, EvaluateConfig, SweepConfig, PredictConfig, ExportConfig),
    DoctorConfig,
)
MOST_OFTEN = 25  # settings that a verb may call often said: more are not read


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How it learns."""

    lr: Often[float] = 0.1  # rate of learning
    decay: float = 0.05  # 5% of something


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb."""

    run_folder: str  # where
    teacher: TeacherConfig
    slides: Often[list[str]] = field(default_factory=list)  # which
    optim: Optim = field(default_factory=Optim)  # how
    other: Optim | None = None  # how else
    overwrite: Often[bool] = False  # what is there
    seed: int = 7  # of all


def help_of(capsys, config_class, *arguments, description="What it does."):
    with pytest.raises(SystemExit) as ended:
        command_line.parse(config_class, description, ["--help", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def groups_of(text):
    """Title → (option, its note) of each group."""
    found = {}
    for title, body in re.findall(r"^(\S.*):\n((?:  .*\n?|\n)+?)(?=^\S|\Z)", text, re.MULTILINE):
        options = re.findall(r"^  (-.*?)(?:\s{2,}|\n\s+)(.*(?:\n {10,}.*)*)", body, re.MULTILINE)
        found[title] = {option: " ".join(note.split()) for option, note in options}
    return found


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert shutil.get_terminal_size().columns == 140


def test_first_what_must_be_said_then_what_often_is(capsys):
    groups = groups_of(help_of(capsys, Verb))
    assert list(groups)[:3] == ["You must say", "You often say", "Of every verb"]
    assert groups["You must say"] == {
        "--run_folder RUN_FOLDER": "where",
        "--teacher NAME": "stain, hovernet, timm, ara_cnn, torchscript, a run folder of finetune.py, or a name in the package",
    }
    often = groups["You often say"]
    assert often["--slides SLIDES …"] == "which"
    assert often["--optim.lr LR"] == "rate of learning [0.1]"
    assert often["--other.lr LR"] == "rate of learning [0.1]", "settings of what may be left out are shown too"
    assert often["--overwrite OVERWRITE"] == "what is there [false]"
    assert not [option for option in often if "decay" in option or "seed" in option]
    flags = [option.split(" ")[0].strip(",") for option in groups["Of every verb"]]
    assert flags == ["-h", "--config", "--print_config", "--quiet", "--verbose", "--log"]


def test_all_of_them_by_section(capsys):
    groups = groups_of(help_of(capsys, Verb, "all"))
    assert list(groups)[:6] == [
        *("You must say", "You often say", "The rest", "teacher.NAME", "optim.NAME: how", "other.NAME: how else"),
    ]
    assert groups["The rest"] == {"--seed SEED": "of all [7]"}
    assert groups["optim.NAME: how"] == {"--optim.decay DECAY": "5% of something [0.05]"}


def test_the_usage_is_what_must_be_said(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verb.py"])
    usage = help_of(capsys, Verb).partition("\n\n")[0]
    assert usage == "usage: verb.py --run_folder RUN_FOLDER --teacher NAME [--SETTING VALUE …]"


def test_examples_keep_their_line_breaks(capsys):
    example = "What it does.\n\n    python workflows/verb.py --optim.lr 1 \\\n        --run_folder x\n"
    assert example in help_of(capsys, Verb, description=example)


def test_exit_codes_are_told(capsys):
    codes = dict(re.findall(r"^  (\d+) +(.*)$", help_of(capsys, Verb).partition("Exit codes:\n")[2], re.MULTILINE))
    assert list(codes) == ["0", "1", "2", "130", "143", "129"]
    assert "SIGTERM or SIGUSR1" in codes["143"]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_setting_is_shown_once(config_class, capsys):
    groups = groups_of(help_of(capsys, config_class, "all"))
    shown = [option.split(" ")[0] for title, options in groups.items() if title != "Of every verb" for option in options]
    names = [f"--{each.name}" for each in settings_of(config_class) if each.section is None]
    short = {form: long for form, long in SHORT_FORMS.items() if long in names}  # a verb may have a setting of that name
    assert sorted(short.get(each, each).removesuffix(".NAME") for each in shown) == sorted(names)
    often = groups_of(help_of(capsys, config_class))["You often say"]
    assert 1 <= len(often) <= MOST_OFTEN


def test_a_word_that_help_does_not_know(capsys):
    assert command_line.run(lambda config: 0, Verb, "", ["--help", "more"]) == 2
    assert "choose from" in capsys.readouterr().err
