"""``orpo-dist env``: versions, devices and folders, as a bug report needs them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import constants as hub

from orpo_dist import __version__
from orpo_dist.data import cache_root

PACKAGES = (
    "torch", "transformers", "accelerate", "deepspeed", "peft", "ray", "datasets", "bitsandbytes",
    "safetensors", "pydantic", "numpy",
)  # fmt: skip
# What decides which devices a process sees, how it computes, and how processes find each other.
VARIABLES = re.compile(
    r"(ORPO|HF|NCCL|TORCH|PYTORCH|CUDA|ROCR|HIP|ZE|GLOO|OMP|MKL|DS|ACCELERATE|FSDP|TOKENIZERS|"
    r"TRANSFORMERS|RAY|XDG_CACHE)_\w+|(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT|"
    r"GPU_DEVICE_ORDINAL|NVIDIA_VISIBLE_DEVICES)"
)
SECRET = re.compile(r"TOKEN(?!IZER)|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# Also in values: the login in the address of a proxy or a mirror, and what the hub gives out.
IN_VALUE = re.compile(r"(?<=//)[^/@\s]+(?=@)|\bhf_\w{8,}")
MASK = "(hidden)"
GIB = 2**30


def run_env(options: argparse.Namespace) -> int:
    """Print it; returns the exit code."""
    found = environment()
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    return 0


def environment() -> dict[str, dict[str, Any]]:
    """What there is, by heading; the values are texts and numbers, None where there is nothing."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "devices": _devices(),
        "variables": shown_variables(dict(os.environ)),
        "folders": _folders(),
    }


def shown_variables(variables: dict[str, str]) -> dict[str, str]:
    """Those that matter, sorted, without secrets: neither in their values nor in addresses."""
    return {
        name: MASK if SECRET.search(name) and value else IN_VALUE.sub(MASK, value)
        for name, value in sorted(variables.items())
        if VARIABLES.fullmatch(name)
    }


def as_text(found: dict[str, dict[str, Any]]) -> str:
    """Headings and lines that can be pasted."""
    lines = []
    for heading, entries in found.items():
        width = max(map(len, entries), default=0)
        lines += [
            heading,
            *(f"  {name:{width}}  {_word(value)}" for name, value in entries.items()),
        ]
        lines += [] if entries else ["  none"]
    return "\n".join(lines)


def _word(value: Any) -> str:
    return "-" if value is None else str(value)


def _versions() -> dict[str, str | None]:
    cuda = torch.version.cuda or torch.version.hip
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
    found = {"orpo_dist": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in PACKAGES} | {"CUDA": cuda, "NCCL": nccl}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "system": platform.platform(),
        "cores": cores,
        "memory": f"{pages * size / GIB:.1f} GiB",
        "interpreter": sys.executable,
    }


def _devices() -> dict[str, str]:
    """The GPUs that this process sees, with the memory of each and what of it is free."""
    found = {}
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
            memory = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
        except RuntimeError as error:  # taken, or broken: the report is about that
            memory = str(error).splitlines()[0]
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        name = torch.cuda.get_device_name(index)
        found[f"GPU {index}"] = f"{name}, {memory}, compute capability {capability}"
    return found


def _folders() -> dict[str, str]:
    """Where caches lie and how much room is left there."""
    folders = {
        "orpo_dist": Path(__file__).parents[1],
        "tokenised data": cache_root(),
        "Hugging Face": Path(hub.HF_HOME),
        "models": Path(hub.HF_HUB_CACHE),
        "here": Path.cwd(),
    }
    return {name: f"{path} ({_room(path)})" for name, path in folders.items()}


def _room(path: Path) -> str:
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    free = f"{shutil.disk_usage(there).free / GIB:.1f} GiB free"
    return free if there == path else f"not there yet, {free}"
