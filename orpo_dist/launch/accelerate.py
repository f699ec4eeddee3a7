"""``accelerate launch`` that hands signals to its workers and passes on how they ended.

The plain one turns every exit code into 1 and kills its workers 30 s after SIGTERM, in the middle
of a checkpoint; on SIGUSR1 it dies and leaves them alone.

    python -m orpo_dist.launch.accelerate launch --config_file FILE ... -m orpo_dist train ...
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import psutil

from orpo_dist.device import deepspeed_follows_torch
from orpo_dist.exits import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_TEMPORARY, EXIT_USER_ERROR
from orpo_dist.launch.presets import Preset

# Ends of a worker that has said all there is to say: see interruption.py and cli.py.
TOLD = (EXIT_USER_ERROR, EXIT_TEMPORARY, EXIT_REQUEUE, EXIT_INTERRUPTED)

HANDED_ON = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str]) -> int:
    """Run ``accelerate launch``; returns the exit code of the worker that ended first."""
    _listen_for_signals()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    deepspeed_follows_torch()
    assert arguments[:1] == ["launch"], "as accelerate: the first word is launch"
    options = launch_command_parser().parse_args(arguments[1:])
    options.signals_to_handle = "SIGHUP,SIGQUIT"  # torchrun's share; the rest is handed on
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
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(preset.path), "--num_processes", "2", "--main_process_port", "0"]
    if preset.deepspeed is not None:
        words += ["--deepspeed_config_file", str(preset.deepspeed)]
    parsed = launch_command_parser().parse_args([*words, "-"])
    options, defaults, _ = _validate_launch_command(parsed)
    if preset.engine.deepspeed:  # accelerate's launch_command adds this on its way
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(options)[1]
    else:
        environment = prepare_multi_gpu_env(options)
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("ACCELERATE_", "FSDP_"))
    }


def _listen_for_signals() -> None:
    """Hand signals on from a thread: the main one may sit in a rendezvous, deaf, for minutes."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    for number in HANDED_ON:
        signal.signal(number, lambda *_: None)  # Python writes the number into the socket

    def listen() -> None:
        while number := receiver.recv(1):
            if number[0] in HANDED_ON:
                _hand_on(number[0])

    threading.Thread(target=listen, daemon=True).start()


def _hand_on(number: int) -> None:
    """Workers know what to do with a signal; this process ends when they have."""
    workers = [p for p in psutil.Process().children() if _is_worker(p)]
    if not workers:  # none yet: there is nothing to save, and nobody to wait for
        os._exit(EXIT_REQUEUE if number == signal.SIGUSR1 else EXIT_INTERRUPTED)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(number)


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
