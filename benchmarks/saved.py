"""What packing saves for a family, and that it is exact: on real pairs, with a small random model.

    python -m benchmarks.saved --tokenizer MODEL --data hh.jsonl gpt_oss qwen3_next lfm2

For every family: a model with the layers, windows, sinks and states of the family, few and thin;
the worst difference of any answer of the first pairs to a forward pass of its own, in nats a token;
over all pairs of the file in steps of eight, the tokens that its layers compute packed as a share
of those that the padded path would; and how many layers have a state, which saves nothing there.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.plan import lengths_of
from orpo_dist.base.types import Pair
from orpo_dist.batching.steps import StepPlan
from orpo_dist.scoring import proof
from orpo_dist.scoring.row_layers import stateful_layers
from orpo_dist.scoring.scorer import Scorer, make_scorer

SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 8192,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},  # windows of 128 tokens
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64},
    "qwen3_next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", help=f"default: {', '.join(FAMILIES)}")
    parser.add_argument("--tokenizer", required=True, help="a model whose tokenizer to use")
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--pairs", type=int, default=6, help="pairs that are compared")
    parser.add_argument("--token-budget", type=int, default=4096)
    options = parser.parse_args()
    lengths = lengths_of(options.data, options.tokenizer)
    print(f"{'':<14}{'nats apart':>12}{'tokens of padded':>18}   layers in rows")
    for family in options.families or FAMILIES:
        model = small(family)
        scorer = make_scorer(model, "packed")
        in_rows = sum(1 for _ in stateful_layers(model))
        print(
            f"{family:<14}{apart(model, scorer, lengths[: options.pairs]):>12.1e}"
            f"{share(lengths, options.token_budget):>18.1%}"
            f"   {in_rows} of {model.config.num_hidden_layers}",
            flush=True,
        )


def small(family: str) -> Any:
    """A random model of the family, every window, chunk and switch as its config has it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@torch.no_grad()
def apart(model: Any, scorer: Scorer, lengths: np.ndarray) -> float:
    """Nats a token of the worst answer, beside forward passes of single answers."""
    draw = torch.Generator().manual_seed(0)
    pairs = [
        Pair(*(torch.randint(3, SMALL["vocab_size"], (n,), generator=draw).tolist() for n in some))
        for some in lengths.tolist()
    ]
    alone = torch.stack(proof.alone(model, pairs)[:2])
    scores = scorer.score(model, scorer.collate(pairs))
    return (torch.stack([scores.chosen_logp, scores.rejected_logp]) - alone).abs().max().item()


def share(lengths: np.ndarray, budget: int) -> float:
    """Packed tokens of an epoch in steps of eight pairs, of those of the padded path's own plan."""
    plan = StepPlan(lengths, lengths[:, 1], 8, 8, token_budget=budget, padded=True)
    works = [step.work for step in plan.epoch(0)]
    return sum(work.tokens for work in works) / sum(work.padded for work in works)


if __name__ == "__main__":
    main()
