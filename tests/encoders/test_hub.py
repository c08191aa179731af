"""A model that cannot be had is refused at once, without a second try."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fanoise_lightning import OpenClipEncoder, TwoTowerEncoder, VisionLanguageEncoder
from fanoise_lightning.encoders.hub import check_available


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def point_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    point_to(port, monkeypatch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The requests to a hub that knows no model."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        point_to(server.server_port, monkeypatch)
        yield paths
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: TwoTowerEncoder("google/siglip-base-patch16-224"), "google/siglip-base-patch16-224"),
        (lambda: VisionLanguageEncoder("Qwen/Qwen2-VL-2B-Instruct"), "Qwen/Qwen2-VL-2B-Instruct"),
        (lambda: OpenClipEncoder("hf-hub:timm/ViT-B-16-SigLIP"), "timm/ViT-B-16-SigLIP"),
        (lambda: OpenClipEncoder("ViT-B-32", "openai"), "timm/vit_base_patch32_clip_224.openai"),
    ],
)
def test_a_hub_out_of_reach_is_said_once_with_the_models_name(build, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=f"'{name}' is neither a folder in .* nor in the cache"):
        build()
    assert time.monotonic() - start < 5  # seven without a check: one second, two, four between the tries


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanoise_lightning._hub.WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(silent.getsockname()[1], monkeypatch)
        start = time.monotonic()
        with pytest.raises(ConnectionError, match="Time"):
            check_available("owner/name")
    assert time.monotonic() - start < 2


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanoise_lightning._hub.WAIT", 0.2)
    found = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: found.wait(5) and [])
    try:
        with pytest.raises(ConnectionError, match=r"no answer within 0\.2 s"):
            check_available("owner/name")
    finally:
        found.set()


def test_any_answer_of_the_hub_will_do(asked: list[str]) -> None:
    check_available("owner/name")
    assert asked == ["/owner/name/resolve/main/config.json"]


def test_what_is_in_the_cache_asks_nobody(asked: list[str], empty_cache: Path) -> None:
    folder = empty_cache / "models--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    check_available("owner/name")
    assert len(asked) == 1  # a config without weights: the rest has to come
    (snapshot / "model.safetensors").touch()
    check_available("owner/name")
    assert len(asked) == 1


@pytest.mark.parametrize("model", ["./nope", "../nope", "/abs/nope", "~/nope", "models/of/mine"])
def test_a_missing_folder_is_said_without_a_request(model: str, asked: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder '{model}' with a model"):
        TwoTowerEncoder(model)
    assert not asked


def test_the_home_folder_is_to_be_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=f"pass '{tmp_path}/mine' instead"):
        check_available("~/mine")


def test_unknown_weights_of_open_clip_are_refused_with_the_tags() -> None:
    with pytest.raises(ValueError, match=r"'nope\.pt' is neither a file nor one of the tags of ViT-B-32: o"):
        OpenClipEncoder("ViT-B-32", "nope.pt")
