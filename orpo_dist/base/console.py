"""What a terminal shows: our own lines, progress bars, and no chatter from libraries."""

from __future__ import annotations

import logging
import sys
import warnings

from orpo_dist.base.failure import rank_among_others


def set_up_logging() -> None:
    """Our lines on stderr, bare, from rank 0; to be called before any heavy import."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("orpo_dist").setLevel(logging.ERROR if rank_among_others() else logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns as it is imported


def quieten_libraries() -> None:
    """Errors of libraries still come through; their notices and bars in log files do not."""
    import transformers

    from orpo_dist.base.device import deepspeed_follows_torch

    deepspeed_follows_torch()
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    for library in ("transformers", "peft", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)


def count(number: float) -> str:
    """A number as a person says it: 135M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
