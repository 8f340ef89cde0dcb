"""What `--help` says: first what must be said, then what is often said, and all other settings after `--help all`."""

import argparse
import copy
import inspect
import json
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args

import jsonargparse

from csat.settings import NAME, Setting, entry_of, settings_of
from workflows.shell.interruption import EXIT_CODES, IN_WORDS

PAGES = Path(__file__).parents[1]
# Short for the most frequent choices.
SHORT_FORMS = {"--teacher": "--teacher.name", "--method": "--method.name", "--model": "--model.name"}
ALL = "all"
MOST_INDENTED = 32  # column in which notes begin


@dataclass(frozen=True)
class Group:
    """What argparse takes for a group of options."""

    title: str
    _group_actions: list[argparse.Action]
    description: None = None


class HelpParser(jsonargparse.ArgumentParser):
    """A parser that shows settings by how often they are said, and calls the verbs as this process was called.

    Attributes:
        config_class: Whose settings it reads; None: help is as argparse has it.
        shows_all: Whether settings that are seldom said are shown, too.
    """

    config_class: type | None = None
    shows_all = False

    def add_help_option(self) -> None:
        """`-h`, `--help` and `--help all`."""
        about = f"this page; --help {ALL}: with every setting"
        self.add_argument("-h", "--help", action=_Help, choices=[ALL], metavar=ALL, help=about)

    def format_help(self, *args: Any) -> str:
        if self.config_class is None:
            return super().format_help(*args)
        groups, self._action_groups = self._action_groups, self._by_use()
        try:
            return as_called(super().format_help(*args))
        finally:
            self._action_groups = groups

    def _by_use(self) -> list[Group]:
        actions = {action.dest: action for action in self._actions}
        notes, settings = field_notes(self.config_class), list(settings_of(self.config_class))
        shown = {each.name: _action(each, actions.get(each.name), notes) for each in settings if each.section is None}
        required = [shown[each.name] for each in settings if each.name in shown and each.is_required]
        often = [shown[each.name] for each in settings if each.name in shown and each.is_often and not each.is_required]
        sections = _sections(self.config_class)
        common = [action for action in self._actions if action.dest not in {each.name for each in settings}]
        self.usage = " ".join(["%(prog)s", *map(_invocation, required), "[--SETTING VALUE …]"])
        groups = [
            Group("You must say", required),
            Group("You often say", often),
            Group("Of every verb", [_common(action) for action in common if not action.dest.endswith(".help")]),
        ]
        if self.shows_all:
            told = {action.dest for action in (*required, *often)}
            for prefix in ("", *sections):
                rest = [
                    action
                    for name, action in shown.items()
                    if name not in told and name.startswith(prefix) and "." not in name[len(prefix) :]
                ]
                title = f"{prefix}NAME: {notes[prefix[:-1]]}" if notes.get(prefix[:-1]) else f"{prefix}NAME"
                groups.insert(-1, Group(title if prefix else "The rest", rest))
        return [group for group in groups if group._group_actions]


class HelpFormatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """A description keeps its lines: the commands in it are not reflowed. Behind a note stands the default alone."""

    def __init__(self, *args: Any, **others: Any):
        super().__init__(*args, **{"max_help_position": MOST_INDENTED, **others})

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, argparse.SUPPRESS, [], {}):
            return action.help or ""
        default = action.default if isinstance(action.default, str) else json.dumps(action.default, default=str)
        return f"{action.help} [{default}]"


class _Help(argparse._HelpAction):
    """`--help`, which may be followed by `all`."""

    def __init__(self, option_strings: list[str], *, choices: list[str], metavar: str, help: str, **others: Any):
        super().__init__(option_strings, help=help, dest=argparse.SUPPRESS, default=argparse.SUPPRESS)
        self.nargs, self.choices, self.metavar = "?", choices, metavar

    def __call__(self, parser: HelpParser, namespace: Any, values: str | None, option_string: str | None = None) -> None:
        parser.shows_all = values == ALL
        parser.print_help()
        parser.exit()


def epilog() -> str:
    """How a verb ends: below every help."""
    codes = {
        0: "all went well",
        1: "the work failed (a training, a part of it, a check), or Ray stopped; what was committed is safe",
        2: "a setting or an input cannot work; the message says what to change",
        EXIT_CODES[signal.SIGINT]: "ended by Ctrl-C (SIGINT)",
        EXIT_CODES[signal.SIGTERM]: "ended by SIGTERM or SIGUSR1",
        EXIT_CODES[signal.SIGHUP]: "ended by SIGHUP: the terminal went away",
    }
    return f"{IN_WORDS}\n\nExit codes:\n" + "\n".join(f"  {code:<4} {what}" for code, what in codes.items())


def as_called(text: str) -> str:
    """A text in which verbs are called as this process was: `csat tune` for `tune.py` where the installed command runs."""
    program = Path(sys.argv[0]).name.rpartition(" ")[0]
    if not program:  # a page, run as a script
        return text
    pages = "|".join(path.stem for path in PAGES.glob("[!_]*.py"))
    return re.sub(rf"(?:python\s+workflows/)?\b({pages})\.py\b", rf"{program} \1", text)


def field_notes(config_class: type) -> dict[str, str]:
    """Dotted setting → the note that stands behind it in the source: one place for the code's reader and for `--help`."""
    sections = {"": config_class}
    sections |= _sections(config_class)
    notes = {}
    for prefix, section in sections.items():
        own = [base for base in section.__mro__ if is_dataclass(base)]  # what it inherits, too
        for line in "".join(map(inspect.getsource, own)).splitlines():
            if found := re.match(r"    (\w+): .*?  # (.+)$", line):
                notes[prefix + found[1]] = found[2]
    return notes


def _sections(config_class: type) -> dict[str, type]:
    """What settings of a config in it begin with → that config; of one that a name stands for, `teachers.NAME.`."""
    found = {f"{each.name}.": each.section for each in settings_of(config_class) if each.section is not None}
    entries = {f"{each.name}.{NAME}.": entry_of(each.hint) for each in settings_of(config_class)}
    return found | {prefix: entry for prefix, entry in entries.items() if entry is not None}


def takes_list(hint: Any) -> bool:
    """Whether a setting is a list of words, which may be given one after the other."""
    return list[str] in (hint, *get_args(hint))


def _action(setting: Setting, action: argparse.Action | None, notes: Mapping[str, str]) -> argparse.Action:
    """The option of a setting as it is shown: by its short form. Settings of what may be left out have none of their own."""
    if action is None:
        action = argparse._StoreAction([f"--{setting.name}"], setting.name, default=setting.default, type=setting.hint)
    shown = copy.copy(action)
    shown.help = notes.get(setting.name)
    short = {long: form for form, long in SHORT_FORMS.items()}
    shown.option_strings = [short.get(f"--{setting.name}", f"--{setting.name}")]
    last = setting.name.rpartition(".")[2].upper()
    if entry_of(setting.hint) is not None:
        shown.option_strings, last = [f"--{setting.name}.{NAME}"], last.removesuffix("S")
    shown.metavar = f"{last} …" if takes_list(setting.hint) else last
    shown.nargs = None
    return shown


def _common(action: argparse.Action) -> argparse.Action:
    """An option of every verb as it is shown."""
    if "--print_config" not in action.option_strings:
        return action
    shown = copy.copy(action)
    shown.nargs, shown.help = 0, "show the settings of this command line as a recipe, and end"
    return shown


def _invocation(action: argparse.Action) -> str:
    return f"{action.option_strings[0]} {action.metavar}"
