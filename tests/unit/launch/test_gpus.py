"""GPUs counted without torch: CUDA_VISIBLE_DEVICES as CUDA reads it, NVML, the driver's files."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_dist.launch import gpus
from orpo_dist.sweeps.running.cluster import _gpus_for_ray

UUIDS = [f"GPU-{letter * 8}-1234-5678-9abc-def012345678" for letter in "abc"]
MIG = ["MIG-11111111-0000-0000-0000-000000000000", "MIG-22222222-0000-0000-0000-000000000000"]


class Nvml:
    """Stands for the driver's library with three GPUs, of which ``lost`` cannot be opened."""

    def __init__(self, error: int = 0, lost: int | None = None):
        self.error, self.lost, self.down = error, lost, False

    def nvmlInit_v2(self) -> int:
        return self.error

    def nvmlShutdown(self) -> int:
        self.down = True
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(UUIDS)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: Any) -> int:
        handle._obj.value = number + 1
        return 15 if number == self.lost else 0

    def nvmlDeviceGetUUID(self, handle: Any, uuid: Any, room: int) -> int:
        assert room == len(uuid)
        uuid.value = UUIDS[handle.value - 1].encode()
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without driver, devices and variables; the folder in place of its root."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "PROC", tmp_path / "proc")
    monkeypatch.setattr(gpus, "DEV", tmp_path / "dev")
    monkeypatch.setattr(gpus, "AMD", tmp_path / "dev" / "kfd")
    (tmp_path / "dev").mkdir()
    library(monkeypatch, None)
    return tmp_path


def library(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None, where: str = gpus.NVML[0]) -> None:
    def load(name: str) -> Any:
        if nvml is None or name != where:
            raise OSError(name)
        return nvml

    monkeypatch.setattr(ctypes, "CDLL", load)


CASES = [
    ("0,1,2", 3), ("1", 1), (" 0 , 1", 2), ("2,0", 2),
    ("", 0), ("-1", 0), ("NoDevFiles", 0),
    ("0,-1,1", 1), ("0,7,1", 1), ("0,x,1", 1), ("0,,1", 1), ("7", 0), ("0,1,2,3", 3),
    ("1gpu2,2ampere", 2), ("0,0", 0),
    ("GPU-aaaa", 1), (f"{UUIDS[2]},{UUIDS[0]}", 2), ("GPU-", 0), ("GPU-aaaa,GPU-zzzz,GPU-bbbb", 1),
    ("GPU-aaaa,0", 1), ("GPU-aaaa,GPU-aaaaaaaa", 0), ("0,GPU-aaaa", 1),
]  # fmt: skip


@pytest.mark.parametrize(("named", "seen"), [*CASES, (MIG[0], 1), (",".join(MIG), 1)])
def test_the_variable_means_what_it_means_to_cuda(named: str, seen: int) -> None:
    assert gpus.count_named(named, UUIDS) == seen


@pytest.mark.parametrize(("named", "seen"), CASES)
def test_torch_reads_the_variable_in_the_same_way(
    named: str, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: len(UUIDS))
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: UUIDS)
    assert torch.cuda._device_count_nvml() == seen


@pytest.mark.parametrize("where", gpus.NVML)
def test_nvml_counts_first(where: str, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    library(monkeypatch, nvml, where)
    assert gpus.existing_gpus() == UUIDS and nvml.down
    assert gpus.visible_gpus() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb,GPU-cccc")
    assert gpus.visible_gpus() == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    library(monkeypatch, Nvml(lost=1), where)
    assert gpus.existing_gpus() == [UUIDS[0], UUIDS[2]]


@pytest.mark.parametrize("nvml", [None, Nvml(error=18)])
def test_else_the_driver_s_files_do(
    nvml: Nvml | None, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(monkeypatch, nvml)
    assert gpus.visible_gpus() == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (machine / "dev" / name).touch()
    assert gpus.existing_gpus() == ["", ""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaaa,GPU-bbbb,GPU-cccc")
    assert gpus.visible_gpus() == 2  # no names to look them up in
    folder = machine / "proc" / "0000:17:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text(f"Model: \t NVIDIA L4\nGPU UUID: \t {UUIDS[1]}\n")
    assert gpus.existing_gpus() == [UUIDS[1]]
    assert gpus.visible_gpus() == 0
    (folder / "information").write_text("GPU UUID: \t GPU-????????-????-????-????-????????????\n")
    assert gpus.visible_gpus() == 1


def test_the_variable_names_no_gpus_where_there_are_none(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpus.visible_gpus() == 0
    (machine / "dev" / "kfd").touch()  # AMD's, which only the variable tells of
    assert gpus.visible_gpus() == 2


def test_ray_looks_for_gpus_itself_only_where_none_are_known_or_hidden(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _gpus_for_ray() is None
    library(monkeypatch, Nvml())
    assert _gpus_for_ray() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert _gpus_for_ray() == 0
