"""What a field says about itself, and configs from plain values."""

import io
from dataclasses import dataclass, field
from typing import Any

import jsonargparse
import pytest

from csat.errors import ConfigError
from csat.settings import (
    Free,
    Often,
    Place,
    SettingsOf,
    UnknownSettingError,
    add_settings,
    completed,
    free_keys,
    merge,
    plain_settings,
    read_settings,
    settings_of,
    unfold,
    valid_keys,
    with_places,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A section."""

    lr: float = 0.1
    every: Free[int | None] = 10
    start: Place | None = None


@dataclass(frozen=True, kw_only=True)
class Verb:
    """All kinds of fields."""

    run_folder: Free[Place]
    name: str = "name"
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    spread: Free[Inner] = field(default_factory=Inner)
    sets: dict[str, Place | SettingsOf[Inner]] = field(default_factory=dict)
    runs: list[Place] | dict[str, Place | list[Place]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Named:
    """Entries under names of a user's."""

    entries: dict[str, Inner] = field(default_factory=dict)


def test_which_settings_there_are_and_which_are_free():
    of_inner = ["lr", "every", "start"]
    sections = [f"{name}.{key}" for name in ("inner", "other", "spread") for key in of_inner]
    assert valid_keys(Verb) == ["run_folder", "name", *sections, "sets", "runs", "options"]
    assert free_keys(Verb) == {
        "run_folder",
        "inner.every",
        "other.every",
        "spread",
        *(f"spread.{key}" for key in of_inner),
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """With something that must be said where the part is there."""

    path: Often[Place]
    rate: Often[Free[float]] = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Parts that must be there, and may be."""

    name: str
    part: Part
    other: Part | None = None
    sizes: Often[list[int]] = field(default_factory=lambda: [1, 2])


def test_what_must_be_said_what_often_is_and_what_it_is_else():
    settings = {each.name: each for each in settings_of(Whole)}
    assert [name for name, each in settings.items() if each.is_required] == ["name", "part", "part.path"]
    often = ["part.path", "part.rate", "other.path", "other.rate", "sizes"]
    assert [name for name, each in settings.items() if each.is_often] == often
    assert settings["part.rate"].is_free
    assert (settings["sizes"].default, settings["other.rate"].default, settings["other.path"].default) == ([1, 2], 0.5, None)
    read = read_settings(Whole, {"name": "x", "part": {"path": "y", "rate": 1}}, what="whole")
    assert read == Whole(name="x", part=Part(path="y", rate=1.0))


def test_places_are_found_wherever_a_type_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Verb(
        run_folder="run",
        name="no/place",
        inner=Inner(start="a"),
        other=Inner(start="s3://b/c/"),
        sets={"one": "set", "two": {"start": "x/../y", "lr": 2}, "three": 3},
        runs={"a": "one", "b": ["two", "/three"]},
        options={"start": "no/place"},
    )
    found = with_places(config)
    assert found.run_folder == f"{tmp_path}/run"
    assert (found.inner.start, found.other.start, found.spread.start) == (f"{tmp_path}/a", "s3://b/c", None)
    assert found.sets == {"one": f"{tmp_path}/set", "two": {"start": f"{tmp_path}/y", "lr": 2}, "three": 3}
    assert found.runs == {"a": f"{tmp_path}/one", "b": [f"{tmp_path}/two", "/three"]}
    assert (found.name, found.options) == (config.name, config.options)
    assert with_places(Verb(run_folder="/r", runs=["a/*", "/b"])).runs == [f"{tmp_path}/a/*", "/b"]
    assert with_places(found) == found


def test_a_config_and_its_plain_values_are_the_same():
    config = Verb(run_folder="r", sets={"a": {"lr": 1}}, other=Inner(lr=3))
    assert read_settings(Verb, plain_settings(config), what="verb") == config


def test_an_earlier_record_is_completed_with_defaults_and_absolute_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = completed(Verb, {"run_folder": "r", "inner": {"lr": 1.0}})
    assert now["run_folder"] == f"{tmp_path}/r" and now["inner"] == {"lr": 1.0, "every": 10, "start": None}
    assert completed(Verb, {"run_folder": "r", "gone": 1}) == {"run_folder": "r", "gone": 1}


def test_an_earlier_record_is_read_whatever_its_free_settings_are_now():
    now = completed(Verb, {"run_folder": "/r", "spread": {"lr": "a word, which was one then"}})
    assert now == plain_settings(Verb(run_folder="/r"))


def test_reading_settings_leaves_them_as_they_are():
    settings = {"a": {"lr": 1.0}}
    read_settings(Named, {"entries": settings}, what="named")
    assert settings == {"a": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": {"lrr": 1}}, r"verb: there is no setting 'inner.lrr'. Did you mean inner.lr"),
        ({"other": {"lrr": 1}}, r"verb: there is no setting 'other.lrr'. Did you mean other.lr"),
    ],
)
def test_an_unknown_setting(settings, message):
    with pytest.raises(UnknownSettingError, match=message):
        read_settings(Verb, {"run_folder": "r", **settings}, what="verb")


def test_a_value_of_another_type():
    with pytest.raises(ConfigError, match="every"):
        read_settings(Verb, {"run_folder": "r", "inner": {"every": "often"}}, what="verb")


def test_a_parser_reads_marked_fields_and_its_help_shows_their_plain_types():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, Verb)
    argv = ["--run_folder=r", "--sets.a=b", "--sets.c={start: d}", "--sets.e=12", "--other.start=f", "--inner.every=null"]
    config = Verb(**vars(parser.instantiate(parser.parse_args(argv))))
    assert config.sets == {"a": "b", "c": {"start": "d"}, "e": "12"}
    assert (config.other.start, config.inner.every) == ("f", None)
    text = io.StringIO()
    parser.print_help(text)
    said = " ".join(text.getvalue().split())
    assert "(required, type: str)" in said and "--inner.every EVERY (type: int | null, default: 10)" in said
    assert "Annotated" not in said and "Mark" not in said


def test_merge_and_unfold():
    assert unfold({"train.optim.lr": 1, "train": {"epochs": 2}}) == {"train": {"optim": {"lr": 1}, "epochs": 2}}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}
