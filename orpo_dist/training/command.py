"""``orpo-dist train``: what it does, and how it ends."""

from __future__ import annotations

import argparse

from orpo_dist.base.failure import rank_among_others, say
from orpo_dist.config.flags import config_of
from orpo_dist.engines import runtime
from orpo_dist.engines.interruption import Interrupted
from orpo_dist.training.run import train


def run_train(options: argparse.Namespace) -> int:
    """Returns the exit code; ``UserError`` for mistakes."""
    try:
        handle = train(config_of(options))
    except Interrupted as stop:
        if not rank_among_others():
            say(str(stop))
        return stop.exit_code
    if not rank_among_others():
        print(handle.path)
    runtime.leave()
    return 0
