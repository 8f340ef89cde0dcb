"""Nothing in cluster/ holds a secret, and nothing listens for the whole world; every script is sound."""

import os
import re
import shutil
import subprocess

import pytest

from tests.cluster.files import CLUSTER, FILLED_IN, filled, read
from workflows.shell.interruption import ASK_WITHIN_S, STOP_WITHIN_S

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
SECRETS = [
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS keys
    r"-----BEGIN",  # private keys
    r"(?i)(secret_access_key|session_token|password|private_key)\s*[:=]\s*[\"']?\w",
    r"RAY_AUTH_TOKEN\s*[:=](?!\"\$\()",  # the token itself; its path is no secret, nor a command that asks for it
    r"\b[0-9a-f]{32,}\b",
]

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
every_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


@every_file
def test_no_secret_and_no_open_door(path):
    text = path.read_text()
    for secret in SECRETS:
        assert not re.search(secret, text), secret
    assert "0.0.0.0" not in text and "[::]" not in text
    for host in re.findall(r"dashboard-host[=: ]+\"?([\w.]+)", text):
        assert host == "127.0.0.1"
    assert "ray stop --force" not in text, "it ends every Ray on the machine"


@every_script
def test_scripts_are_sound(path):
    assert path.read_text().startswith("#!/usr/bin/env bash\n") and path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    found = subprocess.run(["shellcheck", "--severity=warning", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["slurm.sh", "local/two_nodes.sh"])
def test_scripts_make_tokens_that_only_their_user_can_read(name):
    text = read(name)
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text and "set -euo pipefail" in text


def test_slurm_takes_what_slurm_gave():
    text = read("slurm.sh")
    assert '--num-cpus "$SLURM_CPUS_PER_TASK"' in text and "SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text
    assert '--num-gpus "${SLURM_GPUS_ON_NODE:-0}"' in text
    assert "SLURM_JOB_ID %" in text, "two jobs on one node must not share ports"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.suffix in (".yaml", ".json")],
    ids=lambda path: str(path.relative_to(CLUSTER)),
)
def test_fill_replaces_every_word_and_says_what_is_missing(path):
    def fill(**environment: str) -> subprocess.CompletedProcess:
        command = [str(CLUSTER / "fill.sh"), str(path)]
        return subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)

    done = fill(**FILLED_IN)
    assert done.returncode == 0 and done.stdout == filled(str(path.relative_to(CLUSTER)))
    if done.stdout != path.read_text():
        missing = fill()
        assert missing.returncode != 0 and "export it first" in missing.stderr and not missing.stdout


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_a_job_that_is_stopped_has_time_to_commit(name):
    """Longer than a verb takes to end; Ray's own wait is three seconds."""
    (seconds,) = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S\D+(\d+)", read(name))
    assert int(seconds) > STOP_WITHIN_S + 2 * ASK_WITHIN_S


def test_slurm_tells_the_run_before_it_ends_ray():
    text = read("slurm.sh")
    assert "--signal=B:TERM@" in text and "trap 'exit 143' TERM USR1" in text
    assert text.index('kill -TERM "$driver"') < text.index('kill "$step"')
