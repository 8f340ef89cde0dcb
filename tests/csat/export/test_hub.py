"""A folder pushed to a stand-in of the hub's server; and what is said where there is no token, or the hub refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from csat.errors import ConfigError
from csat.export.hub import check_push
from tests.support.hub_stand_in import hub_stand_in

ROOT = Path(__file__).resolve().parents[3]
PUSH = """
import sys
from pathlib import Path
from csat.errors import ConfigError
from csat.export.hub import check_push, push
try:
    print(push(Path(sys.argv[1]), check_push("hf-hub:ward/nuclei"), private=True))
except ConfigError as error:
    print("refused:", error)
"""


def push_to(address: str, folder: Path) -> str:
    """In a process of its own: the client reads its address when it is loaded."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PUSH, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# nuclei\n")
    (tmp_path / "model.onnx").write_bytes(bytes(range(256)))
    return tmp_path


def test_every_file_arrives_in_one_private_repository(folder):
    with hub_stand_in() as (address, hub):
        assert push_to(address, folder) == f"{address}/ward/nuclei"
        assert hub.repositories == {"ward/nuclei": True} and hub.tokens == {"Bearer hf_test"}
        assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refusal_is_told_in_the_hubs_words(folder):
    with hub_stand_in(refuse=True) as (address, hub):
        said = push_to(address, folder)
    assert said.startswith("refused: ") and address in said and "rights" in said
    assert not hub.files


@pytest.mark.parametrize("place", ["ward/nuclei", "hf-hub:nuclei", "hf-hub:a/b/c", "hf-hub:../b", "s3://a/b"])
def test_a_place_that_is_none(place):
    with pytest.raises(ConfigError, match="push is hf-hub:OWNER/NAME"):
        check_push(place)


def test_without_a_token_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="needs a token with the right to write, and there is none: set HF_TOKEN"):
        check_push("hf-hub:ward/nuclei")
