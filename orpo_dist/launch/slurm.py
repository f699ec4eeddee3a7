"""What a SLURM job decides between its attempts: go on, queue again, or stop.

``slurm.sbatch`` calls ``begin`` before an attempt and ``end`` after it. Both look at the folder of
the job (records of the attempts, exit codes of the ranks) and at the run folder (how far training
has come), and both write down what they saw.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orpo_dist.base.exits import (
    EXIT_GAVE_UP,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    EXIT_TEMPORARY,
    EXIT_USER_ERROR,
    recorded_codes,
)
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.runs.folder import RunFolder, read_json, saved_step


class GaveUp(Exception):
    """The job should not go on; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """One SLURM job, as its batch script sees it."""

    id: str  # 17, or 17_3 for a task of an array: what scontrol takes for this job alone
    restarts: int
    folder: Path
    max_requeues: int
    processes: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Job:
        """Reads what SLURM and the batch script export; ``UserError`` outside of a job."""
        try:
            return cls(
                id=environment["ORPO_JOB"],
                restarts=_number(environment, "SLURM_RESTART_COUNT", 0),
                folder=Path(environment["ORPO_JOB_DIR"]),
                max_requeues=_number(environment, "ORPO_MAX_REQUEUES", 20),
                processes=_number(environment, "ORPO_PROCESSES", 1),
            )
        except KeyError as error:
            raise UserError(
                f"{error.args[0]} is not set: this command is for the batch script of a SLURM job"
            ) from error

    @property
    def attempt(self) -> Path:
        """Logs and exit codes of this attempt."""
        return self.folder / f"attempt-{self.restarts}"

    @property
    def exit_codes(self) -> Path:
        return self.attempt / "exit-codes"

    @property
    def done(self) -> Path:
        """Exists once the job's work is finished: an attempt that finds it ends at once."""
        return self.folder / "DONE"

    def records(self, event: str = "begin") -> list[dict[str, Any]]:
        """What ``begin``, or ``end``, has written in former attempts of this job."""
        path = self.folder / "attempts.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [line for line in found if line["job"] == self.id and line["event"] == event]

    def record(self, event: str, **entries: Any) -> None:
        line = {"job": self.id, "attempt": self.restarts, "event": event, "time": time.time()}
        with (self.folder / "attempts.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**line, **entries}) + "\n")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdigit():
        raise UserError(f"{name} '{text}': must be a whole number")
    return int(text)


# --- before an attempt


def begin(job: Job, config: ORPOConfig | None) -> list[str]:
    """Open an attempt; returns the flags that make training go on where the last one stopped.

    config: of the training to come, None for commands that leave no checkpoints.
    Raises ``GaveUp`` where another attempt would be one too many.
    """
    shutil.rmtree(job.exit_codes, ignore_errors=True)
    job.exit_codes.mkdir(parents=True)
    before = job.records()
    began = before[0]["time"] if before else time.time()
    run = RunFolder(config.project_name) if config else None
    state = read_json(run.run) if run else {}
    ours = bool(before) and state.get("started", 0) >= began  # not what an older job has left
    if ours and state.get("status") == "completed":  # only the end of the attempt was lost
        job.done.touch()
    step = saved_step(run) if run and config and (ours or not config.overwrite) else 0
    if job.restarts > job.max_requeues:
        raise GaveUp(f"requeued {job.restarts} times, ORPO_MAX_REQUEUES is {job.max_requeues}")
    tried = [line["step"] for line in before if line["attempt"] not in _outages(job)]
    if run and len(tried) > 1 and set(tried[-2:]) == {step}:
        raise GaveUp(f"two attempts have ended without a checkpoint beyond step {step}")
    job.record("begin", step=step, nodes=os.environ.get("SLURM_JOB_NODELIST"))
    return _resume_flags(config, step) if config and ours else []


def _outages(job: Job) -> list[int]:
    """Attempts that could not load something: no sign that the job gets nowhere."""
    ends = job.records("end")
    return [e["attempt"] for e in ends if EXIT_TEMPORARY in (e["status"], *e["codes"].values())]


def _resume_flags(config: ORPOConfig, step: int) -> list[str]:
    if step:
        return ["--resume-from-checkpoint", "auto", "--no-overwrite"]
    # a former attempt of this very job opened the run folder and got nowhere
    return [] if config.resume_from_checkpoint == "auto" else ["--overwrite"]


# --- after an attempt


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended: all that the decision rests on."""

    status: int  # exit code of the step
    codes: dict[int, int]  # exit codes that ranks have left, by rank
    processes: int
    cause: str  # what SLURM did to the job: see cause_of
    restarts: int
    max_requeues: int
    step_before: int | None  # None: the command leaves no checkpoints
    step_now: int | None

    @property
    def requeue_wanted(self) -> bool:
        """Training stopped on SIGUSR1 on some rank; others may have been ended for that."""
        return EXIT_REQUEUE in (self.status, *self.codes.values())

    @property
    def failed_for_now(self) -> bool:
        """The network or a server failed, which is nothing that a new checkpoint would show."""
        return EXIT_TEMPORARY in (self.status, *self.codes.values())

    @property
    def hung(self) -> bool:
        """A rank hung, as a bad card or network makes it: elsewhere it may go on."""
        return EXIT_HUNG in (self.status, *self.codes.values())

    @property
    def crashed(self) -> bool:
        return self.status != 0 and not self.cause and not self.requeue_wanted


@dataclass(frozen=True)
class Verdict:
    """code: 0 done, 85 queue again, anything else the exit code to stop with."""

    code: int
    why: str


def decide(attempt: Attempt) -> Verdict:
    """Whether a job should be queued again; pure."""
    if verdict := _final(attempt):
        return verdict
    what = attempt.cause or ("failed" if attempt.crashed else "stopped by SIGUSR1")
    if attempt.failed_for_now:
        what = "the network or a server failed"
    elif attempt.hung:
        what = "a rank hung"
    before, now = attempt.step_before, attempt.step_now
    if attempt.restarts >= attempt.max_requeues:
        return _give_up(
            attempt,
            f"{what}; not queued again: that was requeue {attempt.restarts} of at most "
            f"{attempt.max_requeues} (ORPO_MAX_REQUEUES)",
        )
    if before is not None and now is not None and now > before:
        return Verdict(EXIT_REQUEUE, f"{what} with step {now} saved; queued again to go on there")
    again = attempt.failed_for_now or attempt.hung or (before is None and attempt.requeue_wanted)
    if attempt.cause == "preempted" or again:
        return Verdict(EXIT_REQUEUE, f"{what}; queued again")
    if before is None:
        return _give_up(attempt, f"{what}; not queued again: it leaves nothing to go on from")
    return _give_up(
        attempt, f"{what}; not queued again: no checkpoint beyond step {before} was saved"
    )


def _final(attempt: Attempt) -> Verdict | None:
    """Endings after which a job is never queued again."""
    ranks = set(attempt.codes.values())
    everywhere = len(attempt.codes) in (0, attempt.processes)
    if attempt.status == 0:
        return Verdict(0, "done")
    if EXIT_USER_ERROR in (attempt.status, *ranks):
        return Verdict(
            EXIT_USER_ERROR, "not queued again: a mistake in the command, its files or settings"
        )
    if attempt.cause == "cancelled":
        return Verdict(EXIT_INTERRUPTED, "not queued again: it was cancelled")
    if attempt.cause == "requeued":
        return Verdict(EXIT_INTERRUPTED, "queued again by SLURM itself, e.g. after a node failure")
    # A crash of one rank ends the others with SIGTERM: only all of them together are a wish.
    if everywhere and not attempt.cause and (ranks or {attempt.status}) == {EXIT_INTERRUPTED}:
        return Verdict(EXIT_INTERRUPTED, "not queued again: training was asked to stop (SIGTERM)")
    return None


def _give_up(attempt: Attempt, why: str) -> Verdict:
    """A crash keeps its own exit code; where training did as it was told there is none to keep."""
    return Verdict(attempt.status if attempt.crashed else EXIT_GAVE_UP, why)


def end(job: Job, config: ORPOConfig | None, status: int, shown: str) -> tuple[Attempt, Verdict]:
    """Close an attempt whose step ended with ``status``.

    shown: what ``scontrol show job -o`` says of the job now.
    """
    run = RunFolder(config.project_name) if config else None
    attempt = Attempt(
        status=status,
        codes=recorded_codes(job.exit_codes),
        processes=job.processes,
        cause=cause_of(shown, job.restarts) if status else "",
        restarts=job.restarts,
        max_requeues=job.max_requeues,
        step_before=job.records()[-1]["step"] if run else None,
        step_now=saved_step(run) if run else None,
    )
    verdict = decide(attempt)
    job.record("end", **asdict(attempt), **asdict(verdict))
    if verdict.code == 0:
        job.done.touch()
    return attempt, verdict


def cause_of(shown: str, restarts: int) -> str:
    """What SLURM is doing to a job whose script still runs, from ``scontrol show job -o``.

    A script outlives its job's end by some seconds, and must not requeue what was cancelled or is
    in the queue again already. But a job that saves and ends within the grace time of a preemption
    is *not* requeued by SLURM: the script has to.
    """
    fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if fields.get("Reason") == "TimeLimit":
        return "time limit"
    if int(fields.get("Restarts", restarts)) > restarts:
        return "requeued"
    if fields.get("PreemptTime", "None") != "None":
        return "preempted"
    return "" if fields.get("JobState") in (None, "RUNNING") else "cancelled"


def first_errors(logs: Path, lines: int = 20) -> str:
    """What a reader of the job's output wants to see of the logs of the nodes."""
    texts = {path: _tail(path) for path in sorted(logs.glob("*.log"))}
    for path, text in texts.items():
        for index, line in enumerate(text):
            if line.startswith("orpo-dist: ") and ("error: " in line or line.endswith("failed:")):
                shown = 1 if "error: " in line else lines
                return "\n".join([f"{path.name}:", *text[index : index + shown]])
    ends = [[f"{path.name}, its end:", *text[-lines:]] for path, text in texts.items()]
    return "\n".join(line for end in ends[:2] for line in end)


def _tail(path: Path, size: int = 1 << 18) -> list[str]:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - size))
        return log.read().decode(errors="replace").splitlines()
