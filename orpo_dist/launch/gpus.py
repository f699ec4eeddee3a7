"""How many GPUs processes on this machine may use, counted as CUDA does but without torch.

For planning only: whether a process has a GPU is torch's to say (``orpo_dist.base.device``).
"""

from __future__ import annotations

import ctypes
import os
import re
from itertools import takewhile
from pathlib import Path

# By its name where the linker knows it, else where WSL2 keeps it.
NVML = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
PROC, DEV, AMD = Path("/proc/driver/nvidia/gpus"), Path("/dev"), Path("/dev/kfd")


def visible_gpus() -> int:
    """GPUs that a process on this machine sees: CUDA_VISIBLE_DEVICES of those that are there."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named == "":
        return 0
    uuids = existing_gpus()
    if named is None:
        return len(uuids)
    if not uuids and AMD.exists():  # AMD's are not counted here; ROCm reads the variable too
        return len(list(takewhile(lambda number: number >= 0, map(_number, named.split(",")))))
    return count_named(named, uuids)


def count_named(named: str, uuids: list[str]) -> int:
    """How many GPUs a value of CUDA_VISIBLE_DEVICES leaves.

    As in CUDA the list ends at its first entry that is no GPU, and one that says a GPU twice leaves
    none. uuids: of the GPUs that are there, "" where that is not known.
    """
    entries = named.split(",")
    if named.startswith("MIG-"):
        return min(1, len(uuids))  # a process sees one such slice, however many are named
    if named.startswith("GPU-"):
        wanted = list(takewhile(lambda entry: entry.startswith("GPU-"), entries))
        if not all(uuids):
            return min(len(wanted), len(uuids))
        numbers = [_matching(entry.strip(), uuids) for entry in wanted]
    else:
        numbers = [_number(entry) for entry in entries]
    numbers = list(takewhile(lambda number: number >= 0, numbers))
    if len(set(numbers)) < len(numbers):
        return 0
    return len(list(takewhile(lambda number: number < len(uuids), numbers)))


def _number(entry: str) -> int:
    """The number that an entry begins with, as C reads it; -1 if it begins with none."""
    found = re.match(r"\s*([+-]?\d+)", entry)
    return int(found[1]) if found else -1


def _matching(start: str, uuids: list[str]) -> int:
    """Which UUID begins like this; -1 if none does, or more than one."""
    found = [number for number, uuid in enumerate(uuids) if uuid.startswith(start)]
    return found[0] if len(found) == 1 else -1


def existing_gpus() -> list[str]:
    """The UUIDs of NVIDIA's GPUs in this machine or container, "" for one that is not known."""
    found = _from_nvml()
    if found is None:
        found = [_uuid_in(folder / "information") for folder in PROC.glob("*")]
        found = found or ["" for _ in DEV.glob("nvidia[0-9]*")]
    return found


def _from_nvml() -> list[str] | None:
    """By the driver's library, as nvidia-smi; None where there is none, or it does not answer."""
    nvml = next((library for library in map(_library, NVML) if library is not None), None)
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        found = []
        for number in range(count.value):
            handle, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) != 0:
                continue  # not for this process, or fallen off the bus
            unknown = nvml.nvmlDeviceGetUUID(handle, uuid, len(uuid)) != 0
            found.append("" if unknown else uuid.value.decode())
        return found
    finally:
        nvml.nvmlShutdown()


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _uuid_in(information: Path) -> str:
    """From the driver's description of a GPU; it holds question marks until the GPU is used."""
    try:
        found = re.search(r"GPU UUID:\s*(GPU-[0-9a-f-]+)\s", information.read_text() + "\n")
    except OSError:
        return ""
    return found[1] if found else ""
