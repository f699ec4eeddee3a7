"""Several models as one, whose next-token distribution is the average of theirs.

To transformers it is a model like any other: ``generate`` with all its parameters, batches and
KV caches work, one cache per member.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from orpo_dist.ensembles.members import Member, refuse_different_vocabularies
from orpo_dist.models.trained import context_of
from orpo_dist.scoring.packed_forward import causal_model
from orpo_dist.upstream.hf_models import OwnCaches, set_attention

AverageOf = Literal["probabilities", "logits"]


def mix_logps(logps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log(sum_m w_m p_m), elementwise, from log-probabilities of equal shape."""
    shifted = [some + math.log(weight) for some, weight in zip(logps, weights, strict=True)]
    return torch.stack(shifted).logsumexp(0)


def mix_logits(logits: Sequence[Tensor], weights: Sequence[float], average_of: AverageOf) -> Tensor:
    """Logits of the averaged distribution, (..., V) in fp32 or better.

    probabilities: the mixture sum_m w_m p_m. logits: softmax of sum_m w_m z_m, which is the
    normalised geometric mean of the members' distributions. Either way equal members give back
    their own logits, on whose scale and sign transformers' repetition penalty depends.
    """
    exact = [some.to(torch.promote_types(some.dtype, torch.float32)) for some in logits]
    if len(exact) == 1:
        return exact[0]
    if average_of == "probabilities":
        scales = [w * some.logsumexp(-1, True) for w, some in zip(weights, exact, strict=True)]
        mixed = mix_logps([some.log_softmax(-1) for some in exact], weights)
        return mixed + torch.stack(scales).sum(0)
    return torch.stack([w * some for some, w in zip(exact, weights, strict=True)]).sum(0)


class MemberCaches(Cache):
    """The KV caches of all members, moved about as one."""

    def __init__(self, caches: list[DynamicCache]):
        super().__init__(layers=[])
        self.caches = caches

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.caches[0].get_seq_length(layer_idx)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for cache in self.caches:
            cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        for cache in self.caches:
            cache.batch_select_indices(indices)

    def crop(self, max_length: int) -> None:
        for cache in self.caches:
            cache.crop(max_length)


class AverageModel(OwnCaches, PreTrainedModel, GenerationMixin):
    """The average of members with one vocabulary. Raises ``UserError`` if theirs differ.

    Cannot be saved or trained: its members belong to themselves.
    """

    def __init__(self, members: Sequence[Member], average_of: AverageOf = "probabilities"):
        refuse_different_vocabularies(members)
        first = causal_model(members[0].handle.model)
        config = copy.deepcopy(first.config)
        set_attention(config, "sdpa")
        contexts = [context_of(causal_model(member.handle.model)) for member in members]
        if known := [context for context in contexts if context]:
            config.get_text_config().max_position_embeddings = min(known)
        super().__init__(config)
        self.members, self.average_of = list(members), average_of
        self.generation_config = copy.deepcopy(first.generation_config)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.members[0].handle.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.members[0].handle.model.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MemberCaches | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = MemberCaches(
                [DynamicCache(config=m.handle.model.config) for m in self.members]
            )
        caches: Sequence[Any] = [None] * len(self.members)
        if past_key_values is not None:
            caches = past_key_values.caches
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "logits_to_keep": logits_to_keep,
        }
        logits = []
        for member, cache in zip(self.members, caches, strict=True):
            model = member.ready().model.eval()
            takes = inspect.signature(type(causal_model(model)).forward).parameters
            kept = {name: value for name, value in given.items() if name in takes}
            logits.append(
                model(
                    input_ids=input_ids, past_key_values=cache, use_cache=use_cache, **kept
                ).logits
            )
        mixed = mix_logits(logits, [m.weight for m in self.members], self.average_of)
        return CausalLMOutputWithPast(logits=mixed, past_key_values=past_key_values)
