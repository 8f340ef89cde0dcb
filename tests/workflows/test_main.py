"""`csat VERB …`, and the same from a checkout."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import workflows
from tests.support.verbs import ROOT
from workflows.__main__ import VERBS, main
from workflows.shell import command_line, interruption

PAGES = {path.stem for path in Path(workflows.__file__).parent.glob("[!_]*.py")}


@pytest.fixture
def command(tmp_path):
    """Calls `csat` as pip installs it: a script of that name."""
    script = tmp_path / "bin" / "csat"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(1, {str(ROOT)!r})\n"
        "from workflows.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)

    def call(*arguments):
        return subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200)

    return call


def test_there_is_a_verb_for_every_page():
    assert set(VERBS) == PAGES


def test_help_lists_the_verbs_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv[0] = 'bin/csat'; from workflows.__main__ import main; code = main();"
        "print(sorted({module.partition('.')[0] for module in sys.modules} - set(sys.stdlib_module_names)));"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: csat VERB")
    assert all(f"\n  {verb} " in done.stdout and what in done.stdout for verb, what in VERBS.items())
    assert done.stdout.splitlines()[-1] == "['__main__', 'workflows']"


@pytest.mark.parametrize("arguments", [["pretrian"], ["pretrain.py"], ["--config", "demo"], []], ids=" ".join)
def test_an_unknown_verb_is_refused_in_one_sentence(arguments, capsys):
    assert main(arguments) == command_line.EXIT_CODE
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("error: ")
    assert all(verb in err for verb in VERBS)


def test_an_unknown_verb_names_the_nearest(capsys):
    main(["pretrian"])
    assert "(did you mean pretrain?)" in capsys.readouterr().err


def test_a_verb_is_its_page_under_the_name_of_the_command(command, tmp_path):
    done = command("tune", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: csat tune ")
    assert "\n\n    csat tune --config downstream_cpu --data_root data" in done.stdout  # the example, on a line of its own
    assert "are settings of csat finetune" in " ".join(done.stdout.split())
    assert ".py" not in done.stdout
    refused = command("evaluate", "--runs", str(tmp_path / "none"), "--run_folder", str(tmp_path / "compared"))
    assert refused.returncode == command_line.EXIT_CODE
    assert "give the --run_folder of a csat finetune run" in refused.stderr and ".py" not in refused.stderr


def test_a_page_keeps_its_name(tmp_path):
    page = [
        sys.executable,
        "workflows/evaluate.py",
        "--runs",
        str(tmp_path / "none"),
        "--run_folder",
        str(tmp_path / "compared"),
    ]
    refused = subprocess.run(page, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert refused.returncode == command_line.EXIT_CODE
    assert "give the --run_folder of a finetune.py run" in refused.stderr


@pytest.mark.parametrize(
    ("called", "said"),
    [
        (["python", "workflows/tune.py", "--run_folder", "a b"], "python workflows/tune.py --run_folder 'a b'"),
        (["python3", "-m", "workflows", "tune"], "python3 -m workflows tune"),
        (["/env/bin/python", "{bin}/csat", "tune", "--run_folder", "a b"], "csat tune --run_folder 'a b'"),
        (["/env/bin/python", "/elsewhere/csat", "tune"], "/elsewhere/csat tune"),
    ],
)
def test_resume_with_what_was_called(called, said, tmp_path, monkeypatch):
    (tmp_path / "csat").write_text("#!/bin/sh\n")
    (tmp_path / "csat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "orig_argv", [each.replace("{bin}", str(tmp_path)) for each in called])
    assert interruption.command() == said


def test_a_verb_listens_before_its_imports(tmp_path, command):
    script = tmp_path / "bin" / "csat"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-v", script, "pretrain", "--help"], stdout=subprocess.DEVNULL, stderr=log)
    while b"workflows/pretrain.py" not in (tmp_path / "log").read_bytes():  # the page is about to import
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "resume with: " in (tmp_path / "log").read_text(errors="replace")
