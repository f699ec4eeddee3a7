"""What test_sequence.py runs on several ranks: families scored whole, and shared by these ranks.

    torchrun ... shared.py OUT.json FAMILY ...

Writes of each family, on rank 0: nats a token and the share of the gradient by which they differ,
and the weight of the router loss in both; or why it is not shared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from orpo_dist.base.types import UserError
from orpo_dist.engines import runtime
from orpo_dist.engines.mesh import mesh_of
from orpo_dist.scoring import proof
from orpo_dist.scoring.ranks import spread
from orpo_dist.scoring.routing import why_not_balanced
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.families import small_config

# Settings beside the tiny ones: heads that no number of ranks divides, ropes that change.
MORE: dict[str, dict[str, Any]] = {
    "odd heads": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 144},
    "crossing groups": {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 16},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        "max_position_embeddings": 24,
    },
}


def model_of(name: str) -> Any:
    kind = "llama" if name in MORE else name
    config = small_config(kind, **MORE.get(name, {}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def differences(name: str, here: runtime.Runtime) -> Any:
    model, group = model_of(name), mesh_of(here, here.world_size).sequence
    try:
        whole = make_scorer(model, "packed", "prompt_and_completion")
        shared = spread(whole, model, group, here)
    except UserError as error:
        return str(error)
    assert shared.sequence.size == here.world_size
    if why_not_balanced(model) is None:
        whole, shared = (replace(s, top_k=model.num_experts_per_tok) for s in (whole, shared))
    pairs = proof.some_pairs(model.config.get_text_config().vocab_size, seed=7)
    found = [measured(model, scorer, pairs) for scorer in (whole, shared)]
    (scores, slope, balance), (mine, part, balanced) = found
    dist.all_reduce(part)
    return {
        "scores": proof.scores_apart(mine, scores, pairs),
        "gradient": proof.gradient_apart(part, slope),
        "router": (balance - balanced).abs().max().item(),
    }


def measured(model: Any, scorer: Scorer, pairs: Any) -> tuple[Any, Any, Any]:
    """Scores, and the gradient of a sum of all that counts, weighed as the objective weighs it."""
    batch = scorer.collate(pairs)
    scores = scorer.score(model, batch)
    three = torch.stack(proof.packed_scores(scores))
    balance = torch.zeros(len(pairs)) if scores.balance is None else scores.balance
    factors = torch.linspace(1, 2, len(pairs))
    model.zero_grad()
    chosen, rejected, nll = three
    parts = chosen - 0.7 * rejected + 0.01 * nll + 0.3 * balance
    (factors * batch.weight * parts).sum().backward()
    slope = torch.cat([
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()
    ])  # fmt: skip
    return three.detach(), slope, balance.detach()


def main(out: str, *names: str) -> None:
    here = runtime.start()
    found = {}
    for name in names:
        try:
            found[name] = differences(name, here)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        if here.is_main:
            Path(out).write_text(json.dumps(found), encoding="utf-8")
    runtime.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
