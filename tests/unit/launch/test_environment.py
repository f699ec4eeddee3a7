"""``orpo-dist env``: what a bug report needs, and nothing that must not be in one."""

from __future__ import annotations

import json
import platform
import tomllib

import pytest
import torch

import orpo_dist
from orpo_dist.cli import main
from orpo_dist.launch.environment import environment, shown_variables
from tests.conftest import ROOT


def test_it_says_versions_machine_devices_variables_and_folders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("ORPO_DIST_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        f"orpo_dist     {orpo_dist.__version__}", platform.python_version(), torch.__version__,
        "CUDA_VISIBLE_DEVICES", str(tmp_path), "GiB free", "deepspeed", "variables", "folders",
    ):  # fmt: skip
        assert wanted in text
    assert "verysecret" not in text and "(hidden)" in text


def test_it_is_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["versions", "machine", "devices", "variables", "folders"]
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["devices"]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", "hf_abc", "(hidden)"),
        ("HF_TOKEN", "", ""),
        ("RAY_AUTH_TOKEN", "1234", "(hidden)"),
        ("ORPO_API_KEY", "1234", "(hidden)"),
        ("NCCL_my_secret", "1234", "(hidden)"),
        ("HF_ENDPOINT", "https://me:pass@mirror.org/x", "https://(hidden)@mirror.org/x"),
        ("HF_EXTRA", "use hf_abcdefgh1234 there", "use (hidden) there"),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
        ("NCCL_SOCKET_IFNAME", "eth0", "eth0"),
        ("LOCAL_RANK", "1", "1"),
    ],
)
def test_secrets_are_hidden_and_all_else_is_shown(name: str, value: str, shown: str) -> None:
    assert shown_variables({name: value, "HOME": "/root", "AWS_REGION": "x"}) == {name: shown}


def test_a_gpu_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(index: int) -> None:
        raise RuntimeError("CUDA error: busy\nmore")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert environment()["devices"] == {
        "GPU 0": "H100, CUDA error: busy, compute capability 9.0",
    }


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "orpo_dist.__version__"}
