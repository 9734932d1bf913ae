"""`export.py --push_to_hub` sends the model with its card, to a hub on loopback; or says what it would send."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from tests.command import export
from tests.conftest import MODEL, QUICKSTART, one_error
from whisper_lightning.model.module import WhisperModule

TOKEN = "hf_" + "a" * 34


@dataclass
class Hub:
    """A hub that keeps what it is sent.

    Attributes:
        status: What it answers to a new repository; 200 takes it.
        tokens: That it was shown by who sends something.
        private: Whether the repository is for its owner alone; None while there is none.
        files: Of the repository.
    """

    status: int = 200
    tokens: set[str] = field(default_factory=set)
    private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            told = json.loads(body)
            self.private = bool(told.get("private") or told.get("visibility") == "private")
            return {"url": f"https://huggingface.co/{told['organization']}/{told['name']}", "id": "0"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {
                "commitOid": "0" * 40,
                "commitUrl": "https://huggingface.co/ana/whisper-es/commit/000",
                "success": True,
            }
        if path.endswith("/revision/main") or path == "/api/models/ana/whisper-es":
            return {"id": "ana/whisper-es", "sha": "0" * 40, "siblings": []}
        return {"errors": [], "warnings": []}  # of the card


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    kept = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "POST":  # what is read of a public hub needs none
                kept.tokens.add(self.headers.get("Authorization", ""))
            content = json.dumps(kept.answer(self.path, body) if kept.status == 200 else {"error": "no"}).encode()
            self.send_response(kept.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """An export of a small model, compared on one clip."""
    torch.manual_seed(0)
    WhisperModule(checkpoint=str(MODEL), random_weights=True).save_pretrained(tmp_path / "model")
    clips = ["--data", str(QUICKSTART / "test.csv"), "--num_clips=1"]
    return [str(tmp_path / "model"), str(tmp_path / "out"), *clips, "--push_to_hub=ana/whisper-es"]


def test_the_model_and_its_card_are_sent(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([*arguments, "--private"]) == 0
    output = capsys.readouterr()
    assert "sent: https://huggingface.co/ana/whisper-es/commit/000" in output.out
    assert TOKEN not in output.out + output.err
    assert hub.private is True
    assert hub.tokens == {f"Bearer {TOKEN}"}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "hf").iterdir()}
    assert hub.files == written
    assert {"README.md", "model.safetensors", "tokenizer.json", "generation_config.json"} <= hub.files.keys()
    (tmp_path / "fetched").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "fetched" / name).write_bytes(content)
    WhisperForConditionalGeneration.from_pretrained(tmp_path / "fetched")


def test_a_dry_run_sends_nothing(hub: Hub, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert export([*arguments, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "README.md" in printed
    assert "model.safetensors" in printed
    assert "would be sent to ana/whisper-es; nothing was" in printed
    assert (hub.private, hub.files, hub.tokens) == (None, {}, set())


def test_what_the_hub_refuses_is_one_line_and_stays(
    hub: Hub, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = 403
    assert export(arguments) == 2
    error = one_error(capsys)
    assert "the token may not write there" in error
    assert "hf upload ana/whisper-es" in error
    assert TOKEN not in error
    assert (tmp_path / "out" / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--push_to_hub=ana/whisper es"], ["--push_to_hub", "'ana/whisper es'"]),
        (["--push_to_hub=ana/whisper-es", "--formats=ct2"], ["--push_to_hub", "hf", "ct2"]),
    ],
)
def test_mistakes_are_found_before_the_export(
    options: list[str], words: list[str], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([*arguments[:-1], *options]) == 2
    error = one_error(capsys)
    assert all(word in error for word in words)
    assert not (tmp_path / "out").exists()
