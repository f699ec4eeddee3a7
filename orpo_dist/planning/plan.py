"""Every way to run a training on a machine: which fit, and the fastest of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orpo_dist.base.types import UserError
from orpo_dist.batching.token_budget import CPU_TOKENS, MOST_TOKENS
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.compatibility import accumulation, refuse_impossible
from orpo_dist.engines.engine import Engine
from orpo_dist.launch import presets
from orpo_dist.models.recomputing import FORMS, Form
from orpo_dist.planning.data import Data
from orpo_dist.planning.estimate import Estimator, Machine, device_gib, host_gib
from orpo_dist.planning.memory import Part
from orpo_dist.planning.skeleton import Method, method_of
from orpo_dist.planning.speed import Rates, StepTime, step_time

METHODS = (Method(), Method(True), Method(True, "int8"), Method(True, "int4"))

AS_FAST = 1.02  # differences below what such an estimate can tell

# From simple to involved: which of two presets that cost the same is taken.
ORDER = (
    "single", "ddp", "zero1", "zero2", "fsdp2", "zero3",
    "zero2_offload", "zero3_offload", "zero3_nvme",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One way to run the training.

    pairs: in the largest micro-batch, of the longest ones; tokens: they hold together; cut: more
    were allowed and did not fit. why_not: why it does not fit or cannot be, empty if it does.
    """

    method: Method
    preset: str
    checkpointing: Form
    pairs: int
    tokens: int
    micro_batches: int
    parts: tuple[Part, ...]
    device_gib: float
    host_gib: float
    time: StepTime | None
    why_not: str = ""
    cut: bool = False

    @property
    def fits(self) -> bool:
        return not self.why_not

    @property
    def seconds(self) -> float:
        """Of an optimizer step; infinite where it cannot be told."""
        return self.time.seconds if self.time else math.inf

    @property
    def rank(self) -> tuple[float, int, bool]:
        """Sorts the fastest first, then by how involved the preset is."""
        return (self.seconds, ORDER.index(self.preset), bool(self.checkpointing))


class Planner:
    """Candidates on one machine for one config and its data. nvme: there is such a disk."""

    def __init__(self, estimator: Estimator, data: Data, rates: Rates, nvme: bool = False):
        self.estimator, self.data, self.rates, self.nvme = estimator, data, rates, nvme
        self.config, self.machine = estimator.config, estimator.machine
        self.per_rank = self.config.batch_size * accumulation(self.config, self.machine.processes)
        groups = self.machine.processes // self.config.ranks_per_sequence
        self.global_batch = self.config.global_batch_size or self.per_rank * groups

    def methods(self) -> list[Method]:
        """The one that is asked for, then the others."""
        asked = method_of(self.config)
        return [asked, *(method for method in METHODS if method != asked)]

    def candidates(self, method: Method) -> Iterator[Candidate]:
        """Every preset, without and with gradient checkpointing unless a form is asked for."""
        asked = self.config.gradient_checkpointing
        wanted = FORMS if asked == "auto" else (asked,) if asked else (False, True)
        for preset in sorted(self._presets(), key=ORDER.index):
            for checkpointing in wanted:
                yield self.candidate(method, preset, checkpointing)

    def _presets(self) -> list[str]:
        names = [name for name in presets.names() if self.nvme or name != "zero3_nvme"]
        if not self.machine.gpu:
            return ["single"]
        if self.machine.processes == 1:  # nothing to share out but with the host
            return [n for n in names if n == "single" or presets.find(n).engine.offload != "none"]
        return [name for name in names if name != "single"]

    def candidate(self, method: Method, preset: str, checkpointing: Form) -> Candidate:
        """With the largest micro-batch that fits, at least one pair."""
        most = pairs_at_most(self.config, self.size, self.per_rank, self.machine.gpu)
        engine = presets.find(preset).engine
        try:
            refuse_impossible(_configured(self.config, method), engine)
            pairs, found = most_pairs_that_fit(
                self.estimator, engine, method, checkpointing, self.per_rank, most
            )
        except UserError as error:
            return Candidate(method, preset, checkpointing, 0, 0, 0, (), 0, 0, None, str(error))
        candidate = self._with_pairs(method, preset, checkpointing, pairs, found)
        return replace(candidate, cut=pairs < most)

    @property
    def size(self) -> int:
        """Tokens of the longest pair in a micro-batch."""
        prompt, chosen, rejected = self.data.longest
        if self.config.attention == "padded":
            return 2 * (prompt + max(chosen, rejected))
        return prompt + chosen + rejected

    def _with_pairs(
        self, method: Method, preset: str, checkpointing: Form, pairs: int, found: list[Part]
    ) -> Candidate:
        machine, engine = self.machine, presets.find(preset).engine
        micro_batches = math.ceil(self.per_rank / pairs)
        census = self.estimator.census(method)
        time = None
        if census.flops is not None or self.rates.tokens is not None:
            time = step_time(
                census,
                method,
                engine,
                machine.processes,
                micro_batches,
                self.estimator.reduces_once(engine, method),
                self.data.work(self.config, self.global_batch),
                checkpointing,
                self.rates,
                self.config.ranks_per_sequence,
            )
        candidate = Candidate(
            method, preset, checkpointing, pairs, pairs * self.size, micro_batches, tuple(found),
            device_gib(found), host_gib(found, machine), time,
        )  # fmt: skip
        return replace(candidate, why_not=_too_large(candidate, machine, engine.offload == "nvme"))


def pairs_at_most(config: ORPOConfig, size: int, per_rank: int, gpu: bool) -> int:
    """The most pairs of ``size`` tokens in a micro-batch, were there memory without end."""
    budget = config.max_tokens_per_microbatch
    if budget is None:
        return config.batch_size
    if budget == "auto":
        budget = config.ranks_per_sequence * (MOST_TOKENS if gpu else CPU_TOKENS)
        per_rank = per_rank if gpu else config.batch_size
    return max(1, min(per_rank, int(budget) // size))


def most_pairs_that_fit(
    estimator: Estimator,
    engine: Engine,
    method: Method,
    checkpointing: Form,
    per_rank: int,
    most: int,
) -> tuple[int, list[Part]]:
    """How many of the longest pairs fit in one micro-batch, halved until they do; and their parts.

    One pair is the least, whether it fits or not. per_rank: pairs that a process has in a step.
    """
    pairs = most
    while True:
        accumulates = math.ceil(per_rank / pairs) > 1
        found = estimator.parts(engine, pairs, accumulates, checkpointing, method)
        if estimator.untraced:
            return 1, found
        if pairs == 1 or device_gib(found) <= estimator.machine.usable:
            return pairs, found
        pairs //= 2


def _too_large(candidate: Candidate, machine: Machine, on_disk: bool) -> str:
    over = candidate.device_gib - machine.usable
    if over > 0:
        return f"needs {over:.1f} GiB more" + (" on each GPU" if machine.gpu else "")
    room = machine.host_memory
    if machine.gpu and room is not None and not on_disk and candidate.host_gib > room:
        return f"needs {candidate.host_gib - room:.0f} GiB more host memory"
    return ""


def _configured(config: ORPOConfig, method: Method) -> ORPOConfig:
    """The config with this method; what belongs to adapters alone goes with them."""
    changes = {"peft": method.peft, "quantization": method.quantization}
    if not method.peft:
        changes |= {"use_dora": False, "merge_adapter": False, "lora_dtype": "float32"}
    return config.replace(**changes)


def fastest(candidates: list[Candidate]) -> Candidate | None:
    """The fastest that fits, the simplest preset among those as fast; None if none fits."""
    fitting = [c for c in candidates if c.fits]
    if not fitting:
        return None
    least = min(c.seconds for c in fitting)
    return min(
        (c for c in fitting if c.seconds <= AS_FAST * least),
        key=lambda c: (ORDER.index(c.preset), c.rank),
    )
