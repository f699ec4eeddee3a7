"""How much memory a micro-batch needs beside weights and gradients: found by running it.

The real forward, scoring, loss and backward run over fake tensors, which have shapes and types but
no data, while every storage is counted from the operation that makes it to the moment it is freed.
So nothing about an architecture, an adapter or gradient checkpointing has to be known here.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import Pair
from orpo_dist.config import ORPOConfig
from orpo_dist.models.recomputing import LEAST_BYTES, Away, Form, recompute
from orpo_dist.planning.skeleton import HALF, Method, build
from orpo_dist.scoring import packed_forward
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import FUSED, HERE, MAX_HEAD_DIM, Hardware
from orpo_dist.scoring.objective import orpo_loss
from orpo_dist.scoring.scorer import Scorer, adopt_scorer
from orpo_dist.upstream import check
from orpo_dist.upstream.hf_models import experts_multiply_by
from orpo_dist.upstream.torch import storage_id, watching, without_data

Lengths = tuple[int, int, int]  # tokens of prompt, chosen and rejected


class LiveBytes:
    """Bytes of the storages that are alive, and the most there were.

    known: tensors that are not counted (weights, their gradients).
    """

    def __init__(self, known: Sequence[Tensor] = ()):
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {storage_id(x): 0 for x in known}

    def count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_id(tensor)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def micro_batch_bytes(
    hf_config: Any,
    config: ORPOConfig,
    method: Method,
    precision: str,
    pairs: Sequence[Lengths],
    layers: int | None = None,
    engine_casts: bool = False,
    checkpointing: Form = False,
    *,
    gpu: int | None,
) -> tuple[int, int]:
    """Peak bytes of one micro-batch's forward and backward pass, weights and gradients left out.

    pairs: the lengths of its pairs. layers: of the model to run; default all. gpu: compute as on a
    GPU with so many bytes; None: as on a CPU. The rest as in ``skeleton.build``.
    """
    check("hf_models", "torch")
    model = build(hf_config, config, method, precision, layers, engine_casts)
    recompute(model, checkpointing, _Away() if gpu and config.activation_offload else None)
    with without_data(), _experts():
        _off_meta(model)
        core = packed_forward.causal_model(model)
        packs = config.attention != "padded" and packed_forward.why_not_packed(core) is None
        kernel = gpu is not None and precision != "none"
        rows = packs and packed_forward.needs_rows(core)
        hardware = HERE if gpu is None else PlannedGpu(gpu)
        planned = Scorer(packs, config.nll_scope, varlen=kernel, rows=rows, hardware=hardware)
        scorer = adopt_scorer(model, planned)
        batch = scorer.collate([_pair(lengths) for lengths in pairs])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        autocast = precision != "none" and not engine_casts
        count = LiveBytes(list(_held(model)))
        with watching(count.count):
            with torch.autocast("cpu", HALF[precision], enabled=autocast):
                scores = scorer.score(model, batch)
            loss, _ = orpo_loss(scores, 1.0, "additive", len(pairs), sum(c for _, c, _ in pairs))
            forward, count.peak = count.peak, count.live
            loss.backward()
        return forward, count.peak


def _off_meta(model: Any) -> None:
    """Fake tensors of a CPU in place of those of the meta device, which kernels tell apart."""
    made: dict[int, Any] = {}
    for module in model.modules():
        options = {"recurse": False, "remove_duplicate": False}
        held = module.named_parameters(**options), module.named_buffers(**options)
        for name, old in [*held[0], *held[1]]:
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = (
                    torch.nn.Parameter(new, old.requires_grad)
                    if isinstance(old, torch.nn.Parameter)
                    else new
                )
            setattr(module, name, made[id(old)])


def _pair(lengths: Lengths) -> Pair:
    prompt, chosen, rejected = ([1] * length for length in lengths)
    return Pair(prompt, chosen, rejected)


def _held(model: Any) -> Iterator[Tensor]:
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad


class _Away(Away):
    """Of a tensor that went to the host there is nothing left here but its form."""

    def put(self, tensor: Tensor) -> Any:
        if tensor.nbytes < LEAST_BYTES:
            return tensor
        return tensor.shape, tensor.stride(), tensor.dtype

    def fetch(self, held: Any) -> Tensor:
        if isinstance(held, Tensor):
            return held
        shape, stride, dtype = held
        return torch.empty_strided(shape, stride, dtype=dtype)


class PlannedGpu(Hardware):
    """A GPU, while the tensors are those of a CPU, so that this works in every build of torch:
    log-probs of a whole chunk at a time in one kernel call, and attention in one.

    size: bytes of its memory.
    """

    def __init__(self, size: int):
        self.size = size

    def memory(self, device: torch.device) -> int:
        return self.size

    def fuses_head(
        self, device: torch.device, dtype: torch.dtype, vocabulary: int, finish: Finish
    ) -> bool:
        return dtype in FUSED

    def head_logps(self, logits: Tensor, targets: Tensor, finish: Finish) -> tuple[Tensor, Tensor]:
        rows = logits.new_empty(len(logits), dtype=torch.float32)
        return rows, rows.new_empty(len(logits), 2)

    def head_gradient(self, *_: Any) -> None:
        """In place."""

    def block_rows(self, logits: Tensor) -> int:
        return len(logits)

    def kernel_dtype(self, query: Tensor) -> torch.dtype:
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype

    def runs_kernel(self, query: Tensor, softcap: float | None) -> bool:
        return softcap is None and query.shape[-1] <= MAX_HEAD_DIM

    def attend(self, *given: Any, return_aux: Any = None, **options: Any) -> Any:
        output, normaliser = planned_attention(*given[:3])
        return output if return_aux is None else (output, normaliser)

    def attend_backward(self, _: Tensor, saved: tuple[Tensor, ...], *__: Any) -> Any:
        return tuple(torch.empty_like(x) for x in saved[:3])


def _experts() -> contextlib.AbstractContextManager[None]:
    """Products of experts in every precision."""
    return experts_multiply_by(lambda x, weight, offs: _Grouped.apply(x, weight))


class _Grouped(torch.autograd.Function):
    """What a grouped matrix product keeps and makes. (S, in), (E, in, out) -> (S, out)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        inputs = inputs.to(weight.dtype)
        ctx.save_for_backward(inputs, weight)
        return inputs.new_empty(len(inputs), weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(x) if needed else None for x, needed in wanted)


@torch.library.custom_op("orpo_dist::planned_attention", mutates_args=())
def planned_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What a flash attention makes: its output, and one fp32 normaliser per row and head.

    An operation of its own, so that what keeps attention for the backward pass knows it.
    """
    return torch.empty_like(query), _normaliser(query).clone()


@planned_attention.register_fake
def _planned(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), _normaliser(query)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _slopes(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


planned_attention.register_autograd(_slopes, setup_context=_keep)


def _normaliser(query: Tensor) -> Tensor:
    """One fp32 number for every query, (T, H, D), and head: (H, T)."""
    return query.new_empty(query.shape[:2], dtype=torch.float32).T
