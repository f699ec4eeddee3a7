"""Loading from a hub that is down, from one that does not have it, and offline on purpose."""

from __future__ import annotations

import http.server
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import requests

from orpo_dist.base.outage import is_outage
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.models.model import _loading
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


class Answer(requests.Response):
    def __init__(self, status: int):
        super().__init__()
        self.status_code = status


def wrapped(*errors: BaseException) -> BaseException:
    """The errors as a chain of causes, the outermost first."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def refused(status: int) -> requests.HTTPError:
    return requests.HTTPError("refused", response=Answer(status))


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (refused(503), True), (refused(500), True), (refused(429), True), (refused(408), True),
        (refused(404), False), (refused(401), False), (refused(403), False),
        (wrapped(OSError("cannot connect"), refused(503)), True),
        (wrapped(OSError("cannot connect"), refused(404)), False),
        (wrapped(ConnectionError("cannot reach"), refused(404)), False),
        (wrapped(ConnectionError("cannot reach"), refused(502)), True),
        (httpx2.ConnectError("no route"), True), (httpx2.ReadTimeout("slow"), True),
        (httpx2.RemoteProtocolError("hung up"), True), (httpx2.UnsupportedProtocol("ftp"), False),
        (requests.ConnectionError("reset"), True), (requests.Timeout("slow"), True),
        (wrapped(OSError("x"), socket.gaierror(-2, "unknown name")), True),
        (ConnectionResetError(104, "reset"), True), (TimeoutError("slow"), True),
        (OSError("no config.json"), False), (FileNotFoundError("x"), False),
        (KeyError("model_type"), False), (TypeError("takes no argument"), False),
    ],
)  # fmt: skip
def test_what_passes_by_itself(error: BaseException, outage: bool) -> None:
    assert is_outage(error) is outage
    with pytest.raises(TemporaryFailure if outage else UserError) as told, _loading("model", "a/b"):
        raise error
    assert str(told.value).startswith("model a/b: cannot be loaded")


def test_offline_on_purpose_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_outage(ConnectionError("offline mode"))


def test_causes_that_go_round_in_a_circle_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_outage(first)


@pytest.fixture
def hub() -> Iterator[tuple[str, list[int]]]:
    """A hub's address, and a list whose first number is the status that it answers with."""
    status = [403]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()


@pytest.mark.parametrize(("status", "code"), [(501, 75), (404, 2)])
def test_a_run_tells_an_outage_from_a_mistake(
    status: int, code: int, hub: tuple[str, list[int]], tmp_path: Path
) -> None:
    """501 as libraries try the other 5xx again for half a minute."""
    address, answers = hub
    answers[0] = status
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    ended = subprocess.run(
        [sys.executable, "-m", "orpo_dist", "train", "--model", "no/model", "--data-path",
         str(data), "--project-name", str(tmp_path / "run")],
        env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path),
             "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"},
        check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("orpo-dist: failed for now: " if code == 75 else "orpo-dist: error: ")
    assert "no/model" in last and "Traceback" not in ended.stderr
