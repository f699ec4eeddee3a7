"""The runtime: which process this is, on which engine, and how all processes act as one.

Started once, before transformers builds its ``TrainingArguments``. DeepSpeed and FSDP2 also run on
machines without a GPU, over gloo, by a route that ``upstream`` lays.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from orpo_dist.base.device import deepspeed_follows_torch
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.engines.allocator import grow_segments
from orpo_dist.engines.engine import (
    SINGLE,
    Engine,
    check_deepspeed,
    deepspeed_file,
    engine_of,
    read_deepspeed,
)
from orpo_dist.upstream import check
from orpo_dist.upstream.accelerate import join_on_cpu
from orpo_dist.upstream.deepspeed import is_dealt_out, reduce_by_gloo

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # others wait this long while rank 0 reads data or writes weights


@dataclass(frozen=True)
class Runtime:
    """This process among the processes of the run; rank 0 of world_size 1 outside a launcher.

    control: a gloo group for small agreements between all ranks, beside the engine's own traffic.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    engine: Engine = SINGLE
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def agree_on_most(self, number: int) -> int:
        """The largest number that any rank brings."""
        if self.world_size == 1:
            return number
        box = torch.tensor([number])
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.control)
        return int(box)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all ranks."""
        if self.world_size == 1:
            return values
        total = torch.from_numpy(values.copy())
        dist.all_reduce(total, group=self.control)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """What every rank brings, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value, group=self.control)
        return box

    def on_main(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work; every rank gets its result or, as its own, its error."""
        if self.world_size == 1:
            return work()
        box: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main:
            try:
                box[0] = work()
            except Exception as error:
                failure = error
                told = isinstance(error, UserError | TemporaryFailure)
                box[1] = error if told else RuntimeError(str(error))
        dist.broadcast_object_list(box, src=0, group=self.control)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise box[1]
        return box[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """Every rank does the work, rank 0 before the others: they find what it left behind."""
        result: list[T] = []

        def first() -> None:
            result.append(work())

        self.on_main(first)
        return result[0] if result else work()

    def require_same(self, what: str, fingerprint: Callable[[], str]) -> None:
        """``UserError`` on every rank whose fingerprint is not rank 0's."""
        if self.world_size > 1 and self.on_main(fingerprint) != fingerprint():
            raise UserError(
                f"rank {self.rank}: its {what} differ from those of rank 0; all machines must "
                "see the same files"
            )

    def trainer_settings(self) -> dict[str, Any]:
        """What ``TrainingArguments`` must be told for it to stay on the engine that is up."""
        if self.world_size == 1 and self.engine.name == "single":
            return {}
        return {"accelerator_config": {"use_configured_state": True}}

    def check_engine(self, model: Any) -> None:
        """Assert that a prepared model runs on the engine that was asked for."""
        found, wanted = running_engine(model), self.engine.name
        assert found == wanted, f"rank {self.rank}: asked for {wanted}, but {found} came up"


ALONE = Runtime()


@functools.cache
def start() -> Runtime:
    """Join the other processes of the run, if a launcher started any; later calls do nothing.

    Raises ``UserError`` where what the launcher asks for cannot be had on this machine.
    """
    environment = os.environ
    grow_segments()
    engine = engine_of(environment)
    _check_libraries(engine)
    if engine == SINGLE:
        return ALONE
    if "RANK" not in environment:
        raise UserError(
            f"{engine.name} was asked for, but no launcher started this process: use "
            f"'orpo-dist launch {engine.name} -- ...'"
        )
    rank, local_rank, world_size = (
        int(environment[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )
    if engine.deepspeed:
        _check_deepspeed_here(engine)
    if torch.cuda.is_available():
        _start_on_gpus(local_rank)
    else:
        join_on_cpu(engine.name)
    assert dist.get_world_size() == world_size, "the launcher's world did not come up"
    control = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 else None
    return Runtime(rank, local_rank, world_size, engine, control)


def _check_libraries(engine: Engine) -> None:
    """``UserError`` where a library lacks what is reached for in it (``upstream``)."""
    if engine.deepspeed:
        deepspeed_follows_torch()
    check("accelerate", "hf_models", "torch")
    if torch.cuda.is_available():
        check("kernels")


def _check_deepspeed_here(engine: Engine) -> None:
    """``UserError`` where DeepSpeed, its file or what it offloads to is not to be had."""
    path = deepspeed_file(os.environ)
    check_deepspeed(read_deepspeed(path), path)
    try:
        from deepspeed.ops.op_builder import AsyncIOBuilder
    except ImportError as error:
        raise UserError(
            f"{engine.name} needs DeepSpeed: DS_BUILD_OPS=0 pip install --no-build-isolation "
            "'orpo_dist[deepspeed]'"
        ) from error
    check("deepspeed")
    if engine.offload == "nvme" and not AsyncIOBuilder().is_compatible():
        raise UserError(
            f"{engine} needs DeepSpeed's asynchronous I/O, which needs libaio and its headers "
            "(Debian: libaio-dev); install them, or use the preset zero3_offload"
        )
    if not torch.cuda.is_available():
        reduce_by_gloo()


def _start_on_gpus(local_rank: int) -> None:
    from accelerate import PartialState

    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank}: this machine shows {torch.cuda.device_count()} GPU(s); "
            "start one process per GPU (--num-processes)"
        )
    PartialState()


def leave() -> None:
    """Say goodbye to the other processes; the last thing a process does."""
    if dist.is_initialized():
        dist.destroy_process_group()


def running_engine(model: Any) -> str:
    """The name of the engine that a prepared model is in."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        return "ddp"
    if isinstance(model, FSDPModule):
        return "fsdp2"
    if type(model).__name__ == "DeepSpeedEngine":
        return f"zero{model.zero_optimization_stage()}"
    return "single"


def gather_as_one(module: Any) -> None:
    """Let ZeRO-3 gather a module's weights, and those of modules in it, by its own calls alone.

    For a module (a head in an adapter) that calls those in it differently often on every rank.
    """
    if any(True for _ in module.children()):
        from deepspeed.utils import set_z3_leaf_module

        set_z3_leaf_module(module, True)


@contextlib.contextmanager
def gathered_while_used(model: Any) -> Iterator[None]:
    """Within it, a model whose weights ZeRO-3 dealt out on loading runs outside the engine.

    Every module gathers its own weights for as long as it computes; all ranks must take part.
    """
    # An adapter's layer may read its base layer's weights itself (DoRA does).
    lent = {m.base_layer: m for m in model.modules() if hasattr(m, "base_layer")}
    partitioned: dict[Any, list[Any]] = {}
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if is_dealt_out(p)]
        if own:
            partitioned.setdefault(lent.get(module, module), []).extend(own)
    handles = []
    if partitioned:
        import deepspeed

        for module, own in partitioned.items():
            open_contexts: list[Any] = []

            def gather(*_: Any, own: Any = own, opened: list[Any] = open_contexts) -> None:
                context = deepspeed.zero.GatheredParameters(own)
                context.__enter__()
                opened.append(context)

            def release(*_: Any, opened: list[Any] = open_contexts) -> None:
                opened.pop().__exit__(None, None, None)

            handles.append(module.register_forward_pre_hook(gather))
            handles.append(module.register_forward_hook(release, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
