"""How evenly a mixture of experts loads its experts, pair by pair, as transformers computes it.

The loss is that of the Switch Transformer (arXiv 2101.03961, eq. 4 to 6), of the two answers of a
pair, each behind its prompt. It is a product of two means, so that over a whole micro-batch it
would depend on what else is in it; pair by pair it adds up like the rest of the objective.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orpo_dist.base.types import UserError
from orpo_dist.engines.mesh import WHOLE, SequenceGroup
from orpo_dist.scoring.sequence import sum_over

logger = logging.getLogger("orpo_dist")


def balance(
    router_logits: Sequence[Tensor],
    rows: Tensor,
    times: Tensor,
    pairs: int,
    top_k: int,
    sequence: SequenceGroup = WHOLE,
) -> Tensor:
    """Load-balancing loss of each pair, (pairs,) in fp32; ``top_k`` if experts are loaded evenly.

    router_logits: of every layer, (T, experts). rows: (T,) the pair that a token is of. times: (T,)
    how often it counts: twice in a prompt that stands once for both answers, 0 in padding.
    sequence: who has the other tokens of these pairs.
    """
    times = times.float()
    experts = router_logits[0].shape[-1]
    load = times.new_zeros(pairs, experts)
    share = torch.zeros_like(load)
    for logits in router_logits:
        chances = logits.reshape(-1, experts).softmax(-1)
        chosen = torch.zeros_like(load[rows]).scatter_(1, chances.topk(top_k).indices, 1.0)
        load = load.index_add(0, rows, chosen * times[:, None])
        share = share.index_add(0, rows, chances.float() * times[:, None])
    tokens = len(router_logits) * times.new_zeros(pairs).index_add(0, rows, times)[:, None]
    load, share, tokens = (sum_over(sequence, x) for x in (load, share, tokens))
    return experts * (load / tokens * (share / tokens)).sum(1)


def why_not_balanced(core: Any) -> str | None:
    """Why a model's experts cannot be balanced; None if transformers has that loss for it."""
    known = vars(sys.modules[type(core).__module__])
    if "output_router_logits" not in inspect.signature(type(core).forward).parameters:
        return "has no router loss in transformers"
    if "load_balancing_loss_func" not in known or not hasattr(core, "num_experts_per_tok"):
        return "has a router loss of its own kind in transformers"
    return None


def wants_balance(core: Any, coefficient: float | None) -> bool:
    """Whether the router loss is trained; a line where a model's config asks for it in vain.

    Raises ``UserError`` where it is asked for and the model has none.
    """
    if coefficient:
        if reason := why_not_balanced(core):
            raise UserError(f"router_aux_loss_coef {coefficient:g}: {type(core).__name__} {reason}")
        return True
    text = core.config.get_text_config()
    own = getattr(text, "router_aux_loss_coef", None)
    if coefficient is None and own and getattr(text, "output_router_logits", False):
        logger.warning(
            "the model's config asks for a router loss (router_aux_loss_coef %g), which is not "
            "trained; set router_aux_loss_coef to %g to train it, or to 0 to hear no more of it",
            own, own,
        )  # fmt: skip
    return False
