"""Allocators: what they keep, and in what pieces."""

from __future__ import annotations

import ctypes
import functools
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
NEVER = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc reuse large blocks instead of handing them back to the kernel.

    A forward pass allocates gigabytes in large blocks; by default every one is mapped afresh and
    zeroed page by page, which took a quarter of a training step (docs/packing.md). The process
    keeps its peak size from then on. Returns whether the C library knows the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, NEVER)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def grow_segments() -> None:
    """Let CUDA's allocator grow its blocks, unless the user has settings of their own for it.

    Micro-batches differ in size from step to step; with fixed blocks memory that is free in sum
    cannot be had in one piece. To be called before CUDA is used, as torch reads it then.
    """
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):  # of torch 2.9 and later; before
        if name in os.environ:
            return
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
