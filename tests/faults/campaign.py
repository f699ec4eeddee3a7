"""Faults at random, chained: ``python -m tests.faults.campaign --kills 100 --seed 1``.

Each chain is one run that is killed, stopped, damaged, moved or left without room again and again,
and then left alone; its curve and weights are compared with those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.harm import HARMS, damage_something
from tests.kinds import make_kind

STEPS, SAVES = 12, 2
PLAIN = ["--peft", "--lora-dropout", "0.1", "--save-total-limit", "3"]  # random numbers count
BEST = [
    "--valid-data-path", "examples/demo/eval.jsonl", "--eval-strategy", "steps", "--eval-steps",
    str(SAVES), "--load-best-model-at-end", "--save-total-limit", "1",
]  # fmt: skip
KINDS = {"adapter": PLAIN, "best model": BEST}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FAULTS = (*SIGNALS, *HARMS, "full disk", "moved")
LONGEST = 1800.0  # s of one attempt; a hung one is killed
TOLD = "the best model so far cannot be restored"  # so another one is the best: said, not silent
VERDICTS = ("survived", "refused", "lost", "wrong")


@dataclass
class Attempt:
    """One process: its exit code (negative: killed) and all it has said."""

    code: int
    said: str

    @property
    def clean(self) -> bool:
        return "Traceback" not in self.said


@dataclass
class Campaign:
    """model, scratch: folders. Counts verdicts by kind of fault in ``table``."""

    model: Path
    scratch: Path
    seed: int
    table: dict[str, Counter[str]] = field(default_factory=dict)
    stories: list[str] = field(default_factory=list)  # of chains that ended badly

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311
        self.whole: dict[str, tuple[Path, float]] = {}

    def words(self, kind: str, folder: Path) -> list[str]:
        return [
            "train", "--model", str(self.model), "--data-path", "examples/demo/train.jsonl",
            "--project-name", str(folder), "--batch-size", "4", "--gradient-accumulation", "1",
            "--lr", "1e-2", "--logging-steps", "1", "--max-steps", str(STEPS), "--save-strategy",
            "steps", "--save-steps", str(SAVES), "--resume-from-checkpoint", "auto", *KINDS[kind],
        ]  # fmt: skip

    def uninterrupted(self, kind: str) -> tuple[Path, float]:
        """The folder of the run without faults, and how long it took in seconds; made once."""
        if kind not in self.whole:
            folder, began = self.scratch / f"whole-{kind.partition(' ')[0]}", time.monotonic()
            attempt = in_a_process(self.words(kind, folder))
            assert attempt.code == 0, attempt.said
            self.whole[kind] = folder, time.monotonic() - began
        return self.whole[kind]

    def run(self, faults: int) -> None:
        """Inject so many faults, in chains of one to six."""
        number = 0
        while faults > 0:
            number, length = number + 1, min(faults, self.random.randint(1, 6))
            faults -= length
            verdict = self.chain(number, [self.random.choice(FAULTS) for _ in range(length)])
            print(f"chain {number}: {length} faults {verdict}", flush=True)

    def chain(self, number: int, faults: list[str]) -> str:
        """One run with these faults; what became of it."""
        kind = self.random.choice(sorted(KINDS))
        whole, seconds = self.uninterrupted(kind)
        folder = self.scratch / f"chain-{number}"
        story = [f"chain {number}, {kind}"]
        verdict, told = "", False
        for fault in faults:
            folder, attempt = self._inject(fault, kind, folder, seconds, story)
            if attempt is None:
                continue
            told = told or TOLD in attempt.said
            if not attempt.clean:
                verdict, story = "lost", [*story, attempt.said]
                break
        if not verdict:
            last = in_a_process(self.words(kind, folder))
            story.append(f"left alone: {last.code}")
            verdict = judged(last, folder, whole)
            if verdict == "wrong" and (told or TOLD in last.said):
                verdict = "refused"
            if verdict != "survived":
                story.append(last.said)
        for fault in faults:
            self.table.setdefault(fault, Counter())[verdict] += 1
        if verdict != "survived":
            self.stories.append("\n  ".join(story))
        shutil.rmtree(folder, ignore_errors=True)
        return verdict

    def _inject(
        self, fault: str, kind: str, folder: Path, seconds: float, story: list[str]
    ) -> tuple[Path, Attempt | None]:
        """The folder of the run from now on, and what the process said that met the fault."""
        if fault == "moved":
            if folder.exists():
                folder = folder.rename(folder.with_name(folder.name + "m"))
            story.append(f"moved to {folder.name}")
            return folder, None
        if fault in HARMS:
            story.append(damage_something(fault, folder, self.random))
            return folder, None
        words = self.words(kind, folder)
        if fault == "full disk":
            size = int(10 ** self.random.uniform(2.5, 6.3))
            attempt = in_a_process(words, room=size)
            story.append(f"files of at most {size} bytes: {attempt.code}")
            return folder, attempt
        instant = self.random.uniform(0, 1.1) * seconds
        attempt = in_a_process(words, SIGNALS[fault], instant)
        story.append(f"{fault} after {instant:.2f} s: {attempt.code}")
        return folder, attempt

    def report(self) -> str:
        """The seed, and how often each kind of fault was survived, refused, lost or wrong."""
        lines = [f"seed {self.seed}", f"{'fault':12}" + "".join(f"{v:>10}" for v in VERDICTS)]
        for fault in FAULTS:
            if counts := self.table.get(fault):
                lines.append(f"{fault:12}" + "".join(f"{counts[v]:10}" for v in VERDICTS))
        total = sum(self.table.values(), Counter())
        lines.append(f"{'all':12}" + "".join(f"{total[v]:10}" for v in VERDICTS))
        return "\n".join([*lines, *self.stories])

    @property
    def failed(self) -> bool:
        return any(counts["lost"] or counts["wrong"] for counts in self.table.values())


def judged(last: Attempt, folder: Path, whole: Path) -> str:
    """What became of a run, by its last attempt and beside the uninterrupted one."""
    if last.code == 2 and last.clean:
        return "refused"
    if last.code != 0 or not last.clean:
        return "lost"
    return "survived" if same(folder, whole) else "wrong"


def same(folder: Path, whole: Path) -> bool:
    """Whether two runs have logged the same losses and saved the same weights."""
    import torch
    from safetensors.torch import load_file

    from orpo_dist.folder import read_metrics

    def curve(run: Path) -> list[tuple[int, float]]:
        log = read_metrics(run / "metrics.jsonl")
        return [(e["step"], e.get("loss/orpo", e.get("eval/loss"))) for e in log]

    mine, theirs = curve(folder), curve(whole)
    if [step for step, _ in mine] != [step for step, _ in theirs]:
        return False
    if any(abs(a - b) > 1e-6 for (_, a), (_, b) in zip(mine, theirs, strict=True)):
        return False
    for path in sorted(whole.glob("*.safetensors")):
        one, other = load_file(folder / path.name), load_file(path)
        if any(not torch.allclose(one[n], other[n], atol=1e-6, rtol=1e-5) for n in other):
            return False
    return True


def in_a_process(
    words: list[str], number: int | None = None, after: float = 0.0, room: int | None = None
) -> Attempt:
    """Run a command in a fork of this process, which has imported everything already.

    number, after: a signal it gets after so many seconds. room: bytes that a file may have there.
    """
    with tempfile.TemporaryFile() as output:
        # A signal may not come before the fork is the command: it would be the campaign's then.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS.values())
        pid = os.fork()
        if pid == 0:
            _be_the_command(words, output.fileno(), room)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.values())
        timers = [threading.Timer(LONGEST, _signal, (pid, signal.SIGKILL))]
        if number is not None:
            timers.append(threading.Timer(after, _signal, (pid, number)))
        for timer in timers:
            timer.start()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        for timer in timers:  # before the number of the process can be another's
            timer.cancel()
            timer.join()
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Attempt(os.waitstatus_to_exitcode(status), said)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _be_the_command(words: list[str], output: int, room: int | None) -> None:
    """In the fork: nothing of the parent's is run on the way out."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.values())
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        from orpo_dist.cli import main
        from orpo_dist.exits import recorded

        code = recorded(lambda: main(words))
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        with contextlib.suppress(BaseException):  # a late signal
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """Import what a training imports, so that a fork has it."""
    import peft
    import tensorboard.summary.writer
    import torch
    import transformers.trainer

    import orpo_dist.run

    torch.set_num_threads(1)
    assert peft and tensorboard and transformers and orpo_dist.run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many faults")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    warm_up()
    scratch = Path(tempfile.mkdtemp())  # not one that a fork deletes on its way out
    try:
        os.environ["ORPO_DIST_CACHE"] = str(scratch / "cache")
        campaign = Campaign(make_kind("qwen3", scratch / "model"), scratch, options.seed)
        campaign.run(options.kills)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(campaign.report())
    return int(campaign.failed)


if __name__ == "__main__":
    sys.exit(main())
