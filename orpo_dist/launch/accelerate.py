"""``accelerate launch`` that hands signals to its workers and passes on how they ended.

The plain one turns every exit code into 1 and kills its workers 30 s after SIGTERM, in the middle
of a checkpoint; on SIGUSR1 it dies and leaves them alone. Here the first Ctrl-C or SIGTERM gives
workers all the time they need, and a second one ends them within seconds, also those that hang.

    python -m orpo_dist.launch.accelerate launch --config_file FILE ... -m orpo_dist train ...
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

import psutil

from orpo_dist.base.exits import (
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    EXIT_TEMPORARY,
    EXIT_USER_ERROR,
)
from orpo_dist.base.failure import say
from orpo_dist.base.signals import ENDING, LAST_WORDS, Demands, hear_signals
from orpo_dist.base.types import UserError
from orpo_dist.engines.lifeline import announce_launcher
from orpo_dist.launch.presets import Preset
from orpo_dist.upstream import check
from orpo_dist.upstream.accelerate import keep_from_signals, launch_environment

# Ends of a worker that has said all there is to say: see interruption.py and cli.py.
TOLD = (EXIT_USER_ERROR, EXIT_TEMPORARY, EXIT_HUNG, EXIT_REQUEUE, EXIT_INTERRUPTED)

HANDED_ON = ENDING | {signal.SIGUSR1}


def main(arguments: list[str]) -> int:
    """Run ``accelerate launch``; returns the exit code of the worker that ended first."""
    announce_launcher()
    _listen_for_signals()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from orpo_dist.base.device import deepspeed_follows_torch

    deepspeed_follows_torch()
    try:
        check("accelerate")
    except UserError as error:
        say(str(error))
        return EXIT_USER_ERROR
    assert arguments[:1] == ["launch"], "as accelerate: the first word is launch"
    options = launch_command_parser().parse_args(arguments[1:])
    keep_from_signals(options)  # most of them are handed on
    try:
        launch_command(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _explain(rank, failure.exitcode, failure.message)
    except subprocess.CalledProcessError as error:  # the launcher of one process
        return _explain(0, error.returncode, "")
    return 0


def preset_environment(preset: Preset) -> dict[str, str]:
    """The variables by which ``accelerate launch`` tells its workers of the preset's engine.

    For those that start workers otherwise, e.g. Ray, and see to rank and address themselves.
    """
    if preset.engine.name in ("single", "ddp"):
        return {}
    check("accelerate")
    words = ["--config_file", str(preset.path), "--num_processes", "2", "--main_process_port", "0"]
    if preset.deepspeed is not None:
        words += ["--deepspeed_config_file", str(preset.deepspeed)]
    environment = launch_environment([*words, "-"], preset.engine.deepspeed)
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("ACCELERATE_", "FSDP_"))
    }


def _listen_for_signals() -> None:
    """Hand signals on from a thread: the main one may sit in a rendezvous, deaf, for minutes."""
    for number in HANDED_ON:
        signal.signal(number, lambda *_: None)  # the thread is told all the same
    demands = Demands()

    def hear(number: int) -> None:
        if number in HANDED_ON:
            _hand_on(number)
            if demands.final(number):
                _end_workers()

    hear_signals(hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)


def _hand_on(number: int) -> None:
    """Workers know what to do with a signal; this process ends when they have."""
    workers = _workers()
    if not workers:  # none yet: there is nothing to save, and nobody to wait for
        os._exit(EXIT_REQUEUE if number == signal.SIGUSR1 else EXIT_INTERRUPTED)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


def _end_workers() -> NoReturn:
    """Give workers a moment to end by themselves, then kill them, also those that hang."""
    everyone = [member for w in _workers() for member in (w, *_below(w))]
    psutil.wait_procs(everyone, timeout=LAST_WORDS)
    killed = [member for w in _workers() for member in (w, *_below(w))]
    for member in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    said = f", {len(killed)} processes were killed" if killed else ""
    print(f"orpo-dist: ended at once, asked twice{said}", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


def _workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if _is_worker(p)]


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _is_worker(process: psutil.Process) -> bool:
    """Python has other children too, which a signal would kill."""
    try:
        return "orpo_dist" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def _explain(rank: int, code: int, message: Any) -> int:
    """Name the rank that ended first, unless it could speak for itself."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        print(f"orpo-dist: rank {rank} was killed by {name}{hint}", file=sys.stderr)
        return 128 - code
    if code not in TOLD:
        reason = f": {message['message']}" if isinstance(message, dict) else f" with code {code}"
        print(f"orpo-dist: rank {rank} failed first{reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
