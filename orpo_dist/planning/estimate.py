"""One model on one kind of machine: memory of any preset, method and micro-batch."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orpo_dist.base.console import count
from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.engines.engine import Engine, reduces_once
from orpo_dist.models.recomputing import Form, every, share
from orpo_dist.planning.census import Census, take_census
from orpo_dist.planning.layers import depths
from orpo_dist.planning.memory import GIB, Part, Setting, parts
from orpo_dist.planning.skeleton import Method, method_of
from orpo_dist.planning.trace import Lengths, micro_batch_bytes

USABLE = 0.95  # of a GPU's memory

UNKNOWN = "not known, and to be added; here are temporaries of the optimizer's step alone"


@dataclass(frozen=True)
class Machine:
    """processes: over all machines, one per GPU. memory: GiB of one GPU, or of this computer.

    host_memory: GiB of one machine, None where it is not known. per_machine: GPUs in one.
    """

    processes: int
    memory: float
    host_memory: float | None = None
    per_machine: int = 8
    gpu: bool = True

    @property
    def usable(self) -> float:
        """GiB that a plan may fill: on a GPU not to the brim, or one odd batch ends the run."""
        return USABLE * self.memory if self.gpu else self.memory

    @property
    def of_process(self) -> float:
        """GiB that one process may fill."""
        return self.usable if self.gpu else self.memory / self.here

    @property
    def machines(self) -> int:
        return -(-self.processes // self.per_machine)

    @property
    def here(self) -> int:
        """Processes on one machine."""
        return min(self.processes, self.per_machine)


class Estimator:
    """Memory of trainings that differ in preset, method, checkpointing and micro-batch.

    longest: tokens of prompt, chosen and rejected of the longest pair: what a micro-batch is made
    of in the worst case. partial: where a micro-batch cannot be traced, go on without activations
    and say in ``untraced`` why; else what the trace raises is raised.
    """

    untraced = ""

    def __init__(
        self,
        hf_config: Any,
        config: ORPOConfig,
        machine: Machine,
        longest: Lengths,
        partial: bool = False,
    ):
        self.hf_config, self.config, self.machine = hf_config, config, machine
        self.longest, self.partial = longest, partial
        self._censuses: dict[Method, Census] = {}
        self._traces: dict[tuple[Any, ...], int] = {}

    @cached_property
    def precision(self) -> str:
        """``mixed_precision``, its default filled in for the machine that is planned for."""
        return self.config.mixed_precision or ("bf16" if self.machine.gpu else "none")

    def over(self, sequence: int) -> Estimator:
        """The same, with so many processes to a sequence; what was traced is shared."""
        found = copy.copy(self)
        found.config = self.config.replace(sequence_parallel=sequence)
        return found

    def census(self, method: Method) -> Census:
        if method not in self._censuses:
            self._censuses[method] = take_census(
                self.hf_config, self.config, method, self.precision
            )
        return self._censuses[method]

    def activations(self, method: Method, casts: bool, checkpointing: Form, pairs: int) -> int:
        """Bytes of a micro-batch of the ``pairs`` longest pairs beside weights and gradients.

        Two shallow models are traced that differ by one pattern of layers (``layers.depths``), so
        that every further pattern adds the same.
        """
        if method.quantization:  # either kind unpacks one layer's weights at a time
            method = Method(True, "int4")
        key = (method, casts, checkpointing, pairs)
        if key not in self._traces and not self.untraced:
            try:
                self._traces[key] = self._all_layers(method, casts, checkpointing, pairs)
            except UserError:
                raise
            except Exception as error:  # an architecture that reads values as it computes
                if not self.partial:
                    raise
                self.untraced = reason_of(error)
        return self._traces.get(key, 0)

    def depths(self, method: Method, checkpointing: Form) -> tuple[int, int] | None:
        """As ``layers.depths``, where a layer that is computed again is of another kind.

        If only some are, the models end as the whole one does: the last layer that is computed
        again comes beside all that was kept.
        """
        kinds, step = self.census(method).kinds, every(checkpointing)
        found = depths([(kind, step and at % step == 0) for at, kind in enumerate(kinds or ())])
        if found is None or step < 2:
            return found
        few, more = found
        rest = (self.census(method).layers - more) % (more - few)
        return few + rest, more + rest

    def _all_layers(self, method: Method, casts: bool, checkpointing: Form, pairs: int) -> int:
        shallow = self.depths(method, checkpointing)
        found = [self._trace(method, casts, checkpointing, pairs, d) for d in shallow or (None,)]
        if shallow is None:
            return max(found[0])
        few, more = shallow
        patterns = (self.census(method).layers - more) / (more - few)
        # Forward and backward each grow by the pattern, but which is larger may change.
        return max(
            round(last + patterns * (last - first)) for first, last in zip(*found, strict=True)
        )

    def _trace(
        self, method: Method, casts: bool, checkpointing: Form, pairs: int, layers: int | None
    ) -> tuple[int, int]:
        def run(config: ORPOConfig) -> tuple[int, int]:
            return micro_batch_bytes(
                self.hf_config,
                config,
                method,
                self.precision,
                [self.longest] * pairs,
                layers=layers,
                engine_casts=casts,
                checkpointing=checkpointing,
                gpu=round(self.machine.memory * GIB) if self.machine.gpu else None,
            )

        try:
            return run(self.config)
        except UserError:
            raise
        except Exception:  # packed input is not for every model
            if self.config.attention != "auto":
                raise
            return run(self.config.replace(attention="padded"))

    def parts(
        self,
        engine: Engine,
        pairs: int,
        accumulates: bool,
        checkpointing: Form = False,
        method: Method | None = None,
    ) -> list[Part]:
        """The memory of one process with micro-batches of ``pairs`` pairs.

        All that a micro-batch makes is of a token or, in attention, of a head, and so shared out
        evenly where several processes have a sequence.
        """
        method = method or method_of(self.config)
        casts = (engine.deepspeed or engine.name == "fsdp2") and self.precision != "none"
        setting = Setting(
            engine,
            self.machine.processes if engine.name != "single" else 1,
            accumulates,
            self.activations(method, casts, checkpointing, pairs) / self.config.ranks_per_sequence,
            self.config.optimizer,
            self.machine.gpu,
            self.reduces_once(engine, method),
        )
        found = parts(self.census(method), setting)
        if self.offloads and checkpointing:
            found.append(self._away(method, casts, checkpointing, pairs))
        if not self.untraced:
            return found
        return [replace(p, how=UNKNOWN) if p.name == "activations" else p for p in found]

    @property
    def offloads(self) -> bool:
        """Whether what recomputed layers begin with waits on the host."""
        return self.config.activation_offload and self.machine.gpu

    def _away(self, method: Method, casts: bool, checkpointing: Form, pairs: int) -> Part:
        """What waits on the host: the input of every recomputed layer."""
        census = self.census(method)
        tokens = math.ceil(pairs * sum(self.longest) / self.config.ranks_per_sequence)
        number = census.half if method.peft or casts else 4  # bytes
        layers = math.ceil(share(checkpointing, census.layers) * census.layers)
        how = f"{layers} layers × {count(tokens)} tokens × {census.hidden} × {number} B"
        return Part("layer inputs", layers * tokens * census.hidden * number, how, "host")

    def reduces_once(self, engine: Engine, method: Method) -> bool:
        """As the run decides it: ``engine.reduces_once``."""
        memory = self.machine.memory * GIB / (1 if self.machine.gpu else self.machine.here)
        return reduces_once(engine, self.census(method).trains, memory)


def device_gib(found: list[Part]) -> float:
    return sum(part.bytes for part in found if part.where == "device") / GIB


def host_gib(found: list[Part], machine: Machine) -> float:
    """On one machine, for all its processes."""
    return machine.here * sum(part.bytes for part in found if part.where == "host") / GIB
