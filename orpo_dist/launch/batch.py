"""Batch scripts for SLURM, from one template: what is shipped, and one for a site or a plan."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from orpo_dist.base.pages import output_path, write_output
from orpo_dist.base.types import noted, refuse
from orpo_dist.launch import presets

FOLDER = Path(__file__).parent
TEMPLATE = "job.sbatch.jinja"
KINDS = ("train", "ray")
TIME = r"(\d+-)?\d+(:\d\d){0,2}|UNLIMITED|INFINITE"  # as sbatch takes it


def line(default: Any, text: str) -> Any:
    """A line of a batch script: its default and its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BatchJob:
    """What differs between batch scripts; ``UserError``, all mistakes at once, for what is none."""

    kind: str = "train"
    partition: str = line("", "where to queue, e.g. gpu; several with commas")
    account: str = line("", "whom to charge")
    time: str = line("24:00:00", "limit, as sbatch takes it: 90, 2:00:00, 1-12")
    nodes: int = line(2, "machines")
    gpus_per_node: int = line(8, "GPUs of each; 0 where there are none")
    cpus_per_task: int = line(32, "CPUs of each machine that the job gets")
    preset: str = line("zero2", "of orpo-dist launch; not for ray")
    setup: tuple[str, ...] = line((), "a command that makes Python and orpo_dist ready, e.g. "
                                      "'module load cuda'; may be repeated")  # fmt: skip
    launch: str = ""  # more flags of orpo-dist launch
    command: str = ""  # what runs where sbatch is given nothing, quoted for a shell

    def __post_init__(self) -> None:
        found: list[str] = []
        for name, value in (("partition", self.partition), ("account", self.account)):
            if value and not re.fullmatch(r"[\w.,:+@-]+", value, re.ASCII):
                found.append(f"{name} {value!r}: is not a name as SLURM has them")
        if not re.fullmatch(TIME, self.time, re.ASCII):
            found.append(f"time {self.time!r}: is not a limit as sbatch takes it, e.g. 2:00:00")
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1)):
            if getattr(self, name) < least:
                found.append(f"{name} {getattr(self, name)}: must be at least {least}")
        with noted(found):
            presets.find(self.preset)
        found += [said for command in self.setup if (said := _trouble(command))]
        refuse(found)


FLAGS = {one.name: one for one in fields(BatchJob) if "help" in one.metadata}


def _trouble(command: str) -> str:
    """Why a command cannot stand on a line of its own in a script; empty if it can."""
    if not command.strip():
        return "setup: is empty; leave it out or give a command"
    if not command.replace("\t", " ").isprintable():
        return f"setup {command!r}: must be one line of text; give --setup once for each command"
    if command.endswith("\\"):
        return f"setup {command!r}: ends in a backslash, which would take in the next line"
    bash = shutil.which("bash")
    if bash is None:
        return ""
    read = subprocess.run(
        [bash, "-n"], input=command + "\n", capture_output=True, text=True, check=False
    )
    if read.returncode or read.stderr:  # of an open here-document it only warns
        return f"setup {command!r}: is not a whole command to bash"
    return ""


def batch_script(job: BatchJob) -> str:
    """The script as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 (a shell script, of values that were checked)
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(job=job, ray=job.kind == "ray")


def add_write_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``orpo-dist slurm write``; those not given are left out of the namespace."""
    parser.add_argument("kind", nargs="?", choices=KINDS, default="train")
    for name, one in FLAGS.items():
        several = isinstance(one.default, tuple)
        shown = f" (default: {one.default})" if one.default not in ("", ()) else ""
        parser.add_argument(
            "--" + name.replace("_", "-"),
            action="append" if several else "store",
            type=int if isinstance(one.default, int) else str,
            default=argparse.SUPPRESS,
            metavar="COMMAND" if several else "VALUE",
            help=one.metadata["help"] + shown,
        )
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: stdout)")


def write(options: argparse.Namespace) -> None:
    """``orpo-dist slurm write``. Raises ``UserError``."""
    given = {name: value for name, value in vars(options).items() if name in ("kind", *FLAGS)}
    empty = [name for name, value in given.items() if value == ""]
    found = [f"{name}: is empty; leave it out or give a value" for name in empty]
    if given["kind"] == "ray" and "preset" in given:
        found.append("preset: a Ray job has none; its trials have an engine each")
    given["setup"] = tuple(given.get("setup", ()))
    with noted(found):
        job = BatchJob(**{name: value for name, value in given.items() if name not in empty})
    refuse(found)
    script = batch_script(job)
    if options.output is None:
        print(script, end="")
        return
    path = output_path("output", options.output)
    write_output("output", path, script)
    print(path)
