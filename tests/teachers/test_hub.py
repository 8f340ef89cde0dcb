"""What the hub says of a repository, by a server on loopback that answers as the hub does."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from csat.errors import TeacherError
from teachers.hub import check_access, repository

ANSWERS = {"/api/models/open/model/auth-check": (200, None), "/api/models/gated/model/auth-check": (401, "GatedRepo")}
ANSWERS |= {"/api/models/no/model/auth-check": (401, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        status, code = ANSWERS.get(self.path, (503, None))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield endpoint
    server.shutdown()


def test_open_weights(hub):
    assert check_access("open/model") == "the hub gives open/model without a token"


def test_gated_weights_without_a_token(hub):
    with pytest.raises(
        TeacherError, match="gated/model is gated, .*without a token: accept its terms on .*set HF_TOKEN on every"
    ):
        check_access("gated/model")


def test_an_unknown_repository(hub):
    with pytest.raises(TeacherError, match="the hub knows no no/model, or hides it .*check the name"):
        check_access("no/model")


def test_no_hub_at_all(hub, monkeypatch, free_port):
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", f"http://127.0.0.1:{free_port}")
    with pytest.raises(TeacherError, match="does not answer about open/model .*teacher.weights"):
        check_access("open/model")


def test_who_needs_the_hub():
    model = {"model": "hf-hub:MahmoodLab/UNI", "pretrained": True}
    assert repository("timm", model) == "MahmoodLab/UNI"
    assert repository("timm", {**model, "pretrained": False}) is None
    assert repository("timm", {"model": "resnet18", "pretrained": True}) is None  # timm's own: never gated
    assert repository("hovernet", {}) is None
