"""Faults at random, chained: ``python -m tests.faults.campaign --kills 100 --seed 1``.

Each chain is one run that is killed, stopped, damaged, moved or left without room again and again,
and then left alone; its curve and weights are compared with those of the uninterrupted run. Some
chains change the engine and the number of processes at every attempt.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orpo_dist.runs.folder import read_metrics
from orpo_dist.runs.lineage import step_of, whole_checkpoint
from tests.faults.harm import HARMS, damage_something
from tests.faults.processes import SIGNALS, Attempt, hit, in_a_process, launched, limit, wait_for
from tests.kinds import make_kind
from tests.launching import Process

STEPS, SAVES = 12, 2
PLAIN = ["--peft", "--lora-dropout", "0.1", "--save-total-limit", "3"]  # random numbers count
BEST = [
    "--valid-data-path", "examples/demo/eval.jsonl", "--eval-strategy", "steps", "--eval-steps",
    str(SAVES), "--load-best-model-at-end", "--save-total-limit", "1",
]  # fmt: skip
MOVING = ["--save-total-limit", "3", "--hang-timeout", "8"]  # every attempt on another engine
KINDS = {"adapter": PLAIN, "best model": BEST, "moving": MOVING}
NEAR = {"adapter": 1e-6, "best model": 1e-6, "moving": 1e-4}  # of losses and weights
PLACES = [
    ("single", 1), ("ddp", 2), ("ddp", 3), ("zero1", 2), ("zero2", 2), ("zero2_offload", 2),
    ("zero3", 2), ("zero3_offload", 2), ("fsdp2", 2), ("fsdp2", 3),
]  # fmt: skip
RANKS = {"rank killed": signal.SIGKILL, "rank hung": signal.SIGSTOP}
COMMON = (*SIGNALS, *HARMS, "full disk", "moved")
FAULTS = (*COMMON, *RANKS)
MOVES = 0.15  # the part of the faults that meets runs which move: launches take long
TOLD = "the best model so far cannot be restored"  # so another one is the best: said, not silent
VERDICTS = ("survived", "refused", "lost", "wrong")


@dataclass
class Chain:
    """One run, and what happens to it. place: where its next attempt runs."""

    number: int
    kind: str
    folder: Path
    place: tuple[str, int] = ("single", 1)
    said: list[str] = field(default_factory=list)  # what happened, in lines

    def moves_to(self, place: tuple[str, int]) -> bool:
        """Whether a checkpoint of the run goes on at another place than it was written at."""
        before, self.place = self.place, place
        return before != place and whole_checkpoint(self.folder) is not None


@dataclass
class Campaign:
    """model, scratch: folders. Counts by kind of fault: verdicts, and steps that were lost."""

    model: Path
    scratch: Path
    seed: int
    table: dict[str, Counter[str]] = field(default_factory=dict)
    lost_steps: dict[str, list[int]] = field(default_factory=dict)
    moves: Counter[str] = field(default_factory=Counter)  # verdicts of those to other engines
    stories: list[str] = field(default_factory=list)  # of chains that ended badly

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311
        self.whole: dict[str, tuple[Path, float]] = {}

    def words(self, kind: str, folder: Path) -> list[str]:
        size = ["--batch-size", "4", "--gradient-accumulation", "1"]
        if kind == "moving":
            size = ["--batch-size", "2", "--global-batch-size", "4"]
        return [
            "train", "--model", str(self.model), "--data-path", "examples/demo/train.jsonl",
            "--project-name", str(folder), *size, "--lr", "1e-2", "--logging-steps", "1",
            "--max-steps", str(STEPS), "--save-strategy", "steps", "--save-steps", str(SAVES),
            "--resume-from-checkpoint", "auto", *KINDS[kind],
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
            moving = self.random.random() < MOVES
            kind = "moving" if moving else self.random.choice(("adapter", "best model"))
            chain = Chain(number, kind, self.scratch / f"chain-{number}")
            kinds = FAULTS if moving else COMMON
            verdict = self.meet(chain, [self.random.choice(kinds) for _ in range(length)])
            told = self.stories[-1] if verdict != "survived" else f"chain {number}, {kind}"
            print(f"{told}: {length} faults {verdict}", flush=True)

    def meet(self, chain: Chain, faults: list[str]) -> str:
        """Let one run meet these faults, then leave it alone; what became of it."""
        whole, _ = self.uninterrupted(chain.kind)
        moves, said = 0, ""
        for fault in faults:
            if chain.kind == "moving" and fault not in (*HARMS, "moved"):
                moves += chain.moves_to(self._place(fault))
            attempt = self._inject(fault, chain)
            self._count_lost(fault, chain.folder)
            if attempt is not None:
                said += attempt.said
                if not attempt.clean:
                    break
        else:
            if chain.kind == "moving":
                moves += chain.moves_to(self.random.choice(PLACES))
            attempt = self._attempt(chain)
            chain.said.append(f"left alone on {chain.place}: {attempt.code}")
            said += attempt.said
        assert attempt is not None
        verdict = judged(attempt, chain.folder, whole, NEAR[chain.kind])
        if verdict == "wrong" and TOLD in said:
            verdict = "refused"
        for fault in faults:
            self.table.setdefault(fault, Counter())[verdict] += 1
        self.moves[verdict] += moves
        if verdict != "survived":
            story = [f"chain {chain.number}, {chain.kind}", *chain.said, attempt.said]
            self.stories.append("\n  ".join(story))
        shutil.rmtree(chain.folder, ignore_errors=True)
        return verdict

    def _place(self, fault: str) -> tuple[str, int]:
        return self.random.choice(PLACES[1:] if fault in RANKS else PLACES)

    def _attempt(self, chain: Chain, happens: Callable[[Process], None] | None = None) -> Attempt:
        words = self.words(chain.kind, chain.folder)
        if chain.place[0] == "single":
            return in_a_process(words)
        return launched(chain.place, words, happens)

    def _inject(self, fault: str, chain: Chain) -> Attempt | None:
        """Let a fault happen; what the process said that met it, if one did."""
        if fault == "moved":
            if chain.folder.exists():
                chain.folder = chain.folder.rename(chain.folder.with_name(chain.folder.name + "m"))
            chain.said.append(f"moved to {chain.folder.name}")
            return None
        if fault in HARMS:
            chain.said.append(damage_something(fault, chain.folder, self.random))
            return None
        meets = self._meets_alone if chain.place[0] == "single" else self._meets_launched
        attempt, how = meets(fault, chain)
        chain.said.append(f"{fault} on {chain.place}, {how}: {attempt.code}")
        return attempt

    def _meets_alone(self, fault: str, chain: Chain) -> tuple[Attempt, str]:
        words = self.words(chain.kind, chain.folder)
        if fault == "full disk":
            size = int(10 ** self.random.uniform(2.5, 6.3))
            return in_a_process(words, room=size), f"files of at most {size} bytes"
        instant = self.random.uniform(0, 1.1) * self.uninterrupted(chain.kind)[1]
        return in_a_process(words, SIGNALS[fault], instant), f"after {instant:.2f} s"

    def _meets_launched(self, fault: str, chain: Chain) -> tuple[Attempt, str]:
        if fault == "full disk":
            size = int(10 ** self.random.uniform(2.5, 6.3))
            return self._attempt(chain, lambda p: limit(p, size)), f"files of at most {size} bytes"
        step, wait = self.random.randint(1, STEPS), self.random.uniform(0, 0.3)
        number = RANKS.get(fault) or SIGNALS[fault]
        rank = self.random.randrange(chain.place[1]) if fault in RANKS else None

        def happens(process: Process) -> None:
            wait_for(process, chain.folder, step)
            time.sleep(wait)
            hit(process, number, rank)

        who = "" if rank is None else f"rank {rank} "
        return self._attempt(chain, happens), f"{who}{wait:.2f} s after step {step}"

    def _count_lost(self, fault: str, folder: Path) -> None:
        """How many steps the next attempt will have to make again."""
        log = read_metrics(folder / "metrics.jsonl")
        if not log:
            return
        found = whole_checkpoint(folder)
        after = step_of(found) if found else 0
        self.lost_steps.setdefault(fault, []).append(max(0, log[-1]["step"] - after))

    def report(self) -> str:
        """The seed, and how often each kind of fault was survived, refused, lost or wrong."""
        lines = [f"seed {self.seed}", f"{'fault':12}" + "".join(f"{v:>10}" for v in VERDICTS)]
        lines[-1] += f"{'steps to redo: mean, most':>28}"
        for fault in FAULTS:
            if counts := self.table.get(fault):
                lines.append(row(fault, counts))
                if lost := self.lost_steps.get(fault):
                    lines[-1] += f"{sum(lost) / len(lost):20.1f}{max(lost):8}"
        lines.append(row("all", sum(self.table.values(), Counter())))
        lines.append(row("moves", self.moves))
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        return any(counts["lost"] or counts["wrong"] for counts in self.table.values())


def row(name: str, counts: Counter[str]) -> str:
    return f"{name:12}" + "".join(f"{counts[v]:10}" for v in VERDICTS)


def judged(last: Attempt, folder: Path, whole: Path, near: float = 1e-6) -> str:
    """What became of a run, by its last attempt and beside the uninterrupted one."""
    if last.code == 2 and last.clean:
        return "refused"
    if last.code != 0 or not last.clean:
        return "lost"
    return "survived" if same(folder, whole, near) else "wrong"


def same(folder: Path, whole: Path, near: float) -> bool:
    """Whether two runs have logged the same losses and saved the same weights."""
    import torch
    from safetensors.torch import load_file

    def curve(run: Path) -> list[tuple[int, float]]:
        log = read_metrics(run / "metrics.jsonl")
        return [(e["step"], e.get("loss/orpo", e.get("eval/loss"))) for e in log]

    mine, theirs = curve(folder), curve(whole)
    if [step for step, _ in mine] != [step for step, _ in theirs]:
        return False
    if any(abs(a - b) > near for (_, a), (_, b) in zip(mine, theirs, strict=True)):
        return False
    for path in sorted(whole.glob("*.safetensors")):
        one, other = load_file(folder / path.name), load_file(path)
        if any(not torch.allclose(one[n], other[n], atol=near, rtol=1e-5) for n in other):
            return False
    return True


def warm_up() -> None:
    """Import what a training imports, so that a fork has it."""
    import peft
    import tensorboard.summary.writer
    import torch
    import transformers.trainer

    import orpo_dist.training.run

    torch.set_num_threads(1)
    assert peft and tensorboard and transformers and orpo_dist.training.run


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
