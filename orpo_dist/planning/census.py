"""What a policy consists of: counted on the meta device, from its config.json alone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from orpo_dist.config import ORPOConfig
from orpo_dist.models.experts import used_shares
from orpo_dist.models.flops import ModelFlops, model_flops
from orpo_dist.planning.layers import kinds_of
from orpo_dist.planning.skeleton import HALF, QUANTISED_BYTES, Method, build, quantised_weights
from orpo_dist.scoring.model_config import number_of
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.upstream.hf_models import block_classes


@dataclass(frozen=True)
class Census:
    """Numbers of parameters, and bytes where precisions are mixed.

    trains, frozen: parameters; quantised: those of ``frozen`` that lie in 4 or 8 bits.
    plain_bytes: of all weights but the quantised, as one process holds them without an engine that
    casts. quantised_bytes: of those. grad_bytes: of the gradients of ``trains``.
    half: bytes of a number in the computing precision (2; 4 without mixed precision).
    embedded: of ``trains``, those of embeddings, of which 8-bit optimizers keep a state in 32 bits.
    block: parameters of one layer, block_trains: those that train. largest: of one tensor that
    trains. layers: layers. flops: of a step, None where they cannot be told. active: parameters
    that one token meets; less than all in a mixture of experts. kinds: what each layer is,
    as in ``layers.kinds_of``; None where the layers are not found.
    """

    trains: int
    frozen: int
    embedded: int
    quantised: int
    plain_bytes: int
    quantised_bytes: float
    grad_bytes: int
    half: int
    block: int
    block_trains: int
    largest: int
    layers: int
    hidden: int
    flops: ModelFlops | None
    active: int
    kinds: tuple[Hashable, ...] | None

    @property
    def total(self) -> int:
        return self.trains + self.frozen

    @property
    def cast_bytes(self) -> float:
        """All weights where the engine holds them in the computing precision."""
        return (self.total - self.quantised) * self.half + self.quantised_bytes

    @property
    def shared_cast_bytes(self) -> float:
        """Of what lies outside of the layers: embeddings, head, last norm."""
        return max(0, self.total - self.layers * self.block) * self.half

    @property
    def block_cast_bytes(self) -> float:
        """One layer in the computing precision, or in bits where it is quantised."""
        inside = min(self.quantised, self.layers * self.block) / self.layers
        per_number = self.quantised_bytes / self.quantised if self.quantised else 0
        return (self.block - inside) * self.half + inside * per_number


def take_census(hf_config: Any, config: ORPOConfig, method: Method, precision: str) -> Census:
    """Count a policy of the given method."""
    model = build(hf_config, config, method, precision)
    core = causal_model(model)
    text = hf_config.get_text_config()
    bits = {id(weight): weight.numel() for weight in quantised_weights(model)}
    weights = list(model.parameters())
    training = [p for p in weights if p.requires_grad]
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    embedded = {id(p): p.numel() for p in embeddings if p.requires_grad}
    blocks = _blocks(core)
    quantised = sum(bits.values())
    return Census(
        trains=sum(p.numel() for p in training),
        frozen=sum(p.numel() for p in weights if not p.requires_grad),
        embedded=sum(embedded.values()),
        quantised=quantised,
        plain_bytes=sum(p.numel() * p.element_size() for p in weights if id(p) not in bits),
        quantised_bytes=quantised * QUANTISED_BYTES.get(str(method.quantization), 0.0),
        grad_bytes=sum(p.numel() * p.element_size() for p in training),
        half=HALF[precision].itemsize,
        block=max(sum(p.numel() for p in block.parameters()) for block in blocks),
        block_trains=max(
            sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks
        ),
        largest=max((p.numel() for p in training), default=0),
        layers=number_of(text, "num_hidden_layers") or len(blocks),
        hidden=number_of(text, "hidden_size") or core.get_input_embeddings().weight.shape[-1],
        flops=model_flops(core),
        active=_active(core, weights),
        kinds=_kinds(core, text),
    )


def _kinds(core: Any, text: Any) -> tuple[Hashable, ...] | None:
    layers = number_of(text, "num_hidden_layers")
    lists = [m for m in core.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not lists:
        return None
    largest = max(lists, key=lambda held: sum(p.numel() for p in held.parameters()))
    return tuple(kinds_of(list(largest), text))


def _active(core: Any, weights: list[Any]) -> int:
    try:
        shares = used_shares(core)
    except LookupError:
        shares = {}
    return round(sum(p.numel() * shares.get(id(p), 1.0) for p in weights))


def _blocks(core: Any) -> list[Any]:
    """The layers, which FSDP2 wraps one by one; the whole model where they have no name."""
    names = block_classes(core)
    found = [module for module in core.modules() if type(module).__name__ in names]
    return found or [core]
