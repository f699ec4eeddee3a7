"""A plan as text for the terminal."""

from __future__ import annotations

from orpo_dist.base.console import count
from orpo_dist.planning.data import Data
from orpo_dist.planning.estimate import Estimator
from orpo_dist.planning.memory import GIB
from orpo_dist.planning.plan import Candidate, Planner, fastest
from orpo_dist.planning.skeleton import Method, method_of


def heading(planner: Planner) -> str:
    """What is planned for what: one block of facts."""
    estimator, machine, data = planner.estimator, planner.machine, planner.data
    census = estimator.census(method_of(planner.config))
    prompt, chosen, rejected = data.longest
    where = f"{machine.processes} GPU{'s' * (machine.processes > 1)} of {machine.memory:g} GiB"
    if machine.machines > 1:
        where += f" in {machine.machines} machines"
    active = ""
    if census.active < census.total:
        active = f" ({count(census.active)} active for a token)"
    if not machine.gpu:
        where = f"CPU, {machine.memory:g} GiB"
    lines = [
        f"{_name(estimator)}: {count(census.total)} parameters{active}, "
        f"{count(census.trains)} train, "
        f"{census.layers} layers of width {census.hidden}, "
        f"{estimator.precision.replace('none', 'fp32')} | {where}",
        f"longest pair {prompt} + {chosen} + {rejected} = {planner.size:,} tokens in memory "
        f"({data.source}) | a step: {planner.global_batch} pairs, "
        f"{planner.per_rank} per process{_shared(planner)}",
    ]  # fmt: skip
    if estimator.untraced:
        lines.append(
            "memory without activations: a micro-batch of this architecture cannot be run without "
            f"data ({estimator.untraced}); try the real one with max_tokens_per_microbatch auto"
        )
    return "\n".join(lines)


def _shared(planner: Planner) -> str:
    size = planner.config.ranks_per_sequence
    return f", {size} processes to a sequence" if size > 1 else ""


def _name(estimator: Estimator) -> str:
    return (str(estimator.config.model) or "model").rstrip("/").rpartition("/")[2]


def table(candidates: list[Candidate]) -> str:
    """One line per candidate, the fastest that fit first."""
    lines = [
        f"{'method':<11}{'preset':<15}{'checkpointing':<15}{'GiB':>7}{'host':>6}{'pairs':>7}"
        f"{'micro':>7}{'s/step':>9}{'GB sent':>9}"
    ]
    for c in sorted(candidates, key=lambda c: (not c.fits, c.rank if c.fits else c.device_gib)):
        time = f"{c.time.seconds:>9.3g}{c.time.sent_gb:>9.3g}" if c.time else f"{'-':>9}{'-':>9}"
        sizes = f"{c.device_gib:>7.1f}{c.host_gib:>6.0f}{c.pairs:>7}{c.micro_batches:>7}{time}"
        lines.append(
            f"{c.method!s:<11}{c.preset:<15}{_form(c):<15}"
            + (sizes if c.parts else "")
            + (f"  {c.why_not}" if c.why_not else "")
        )
    return "\n".join(lines)


def arithmetic(candidate: Candidate, memory: float) -> str:
    """The parts of one process's memory, as they are added up."""
    lines = []
    for part in candidate.parts:
        where = "" if part.where == "device" else "  (on the host)"
        lines.append(f"  {part.name:<15}{part.bytes / GIB:>8.2f} GiB  {part.how}{where}")
    spare = memory - candidate.device_gib
    lines.append(
        f"  {'in all':<15}{candidate.device_gib:>8.2f} GiB of {memory:g}, {spare:.1f} spare"
    )
    return "\n".join(lines)


def budget(planner: Planner, candidate: Candidate) -> str:
    """What a micro-batch may hold."""
    if planner.estimator.untraced:
        return "  a micro-batch: one pair, as nothing is known of its activations"
    held = f"{candidate.pairs} of the longest pairs, {candidate.tokens:,} tokens"
    return f"  a micro-batch: {held}; {candidate.micro_batches} a step and process"


def hours(planner: Planner, candidate: Candidate) -> float | None:
    """Of the whole run."""
    steps = planner.data.steps(planner.config, planner.global_batch)
    if steps is None or candidate.time is None:
        return None
    return steps * candidate.time.seconds / 3600


def timing(planner: Planner, candidate: Candidate) -> str:
    """Steps, hours and tokens of the whole run, as far as they can be known."""
    data: Data = planner.data
    steps = data.steps(planner.config, planner.global_batch)
    work = data.work(planner.config, planner.global_batch)
    lines = [f"  a step: {count(round(work.tokens))} tokens"]
    if candidate.time is None:
        lines[0] += "; no rate is known for this architecture: pass --tokens-per-second"
    else:
        time = candidate.time
        lines[0] += (
            f", {time.seconds:.3g} s = {time.computing:.3g} computing + {time.recomputing:.3g} "
            f"recomputing + {time.sending:.3g} sending {time.sent_gb:.3g} GB + "
            f"{time.offloading:.3g} offloading"
        )
    lines.append(f"  rates: {planner.rates.source}; nothing overlaps in this estimate")
    if steps is None:
        lines.append("  the run: pass --pairs (or data_path) for its steps and hours")
        return "\n".join(lines)
    line = f"  the run: {steps:,} steps, {count(round(steps * work.tokens))} tokens"
    if (whole := hours(planner, candidate)) is not None:
        line += f", {whole:.1f} hours"
    return "\n".join([*lines, line])


def others(candidates: dict[Method, list[Candidate]], asked: Method) -> str:
    """The best of every method that was not asked for."""
    lines = []
    for method, found in candidates.items():
        if method == asked:
            continue
        best = fastest(found)
        lines.append(f"  {method!s:<11}" + (_short(best) if best else "does not fit"))
    return "\n".join(lines)


def closest(candidates: list[Candidate]) -> str:
    """What lacks least, where nothing fits; empty if every combination is refused."""
    tried = [c for c in candidates if c.parts]
    if not tried:
        return ""
    best = min(tried, key=lambda c: c.device_gib)
    return f"{name_of(best)}: {best.why_not}"


def _form(c: Candidate) -> str:
    return c.checkpointing if isinstance(c.checkpointing, str) else ("off", "on")[c.checkpointing]


def _recomputing(c: Candidate) -> str:
    if not c.checkpointing:
        return ""
    return ", gradient checkpointing" + ("" if c.checkpointing is True else f" {c.checkpointing}")


def name_of(c: Candidate) -> str:
    return f"{c.method}, {c.preset}{_recomputing(c)}"


def _short(c: Candidate) -> str:
    seconds = f", {c.time.seconds:.3g} s a step" if c.time else ""
    return f"{c.preset}{_recomputing(c)}: {c.device_gib:.1f} GiB{seconds}"
