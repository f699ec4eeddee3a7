"""One training step by hand: from rows to the gradient, over the parts that the trainer uses.

    python examples/by_hand.py --model MODEL --data-path pairs.jsonl

Takes every flag of 'orpo-dist train', for one process in fp32. What the trainer adds: engines and
precision, schedules, the token budget, logs, checkpoints, and steps that are skipped where they are
no numbers. A test holds this page to the trainer's first step: same loss, gradients and weights.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from orpo_dist import ORPOConfig, add_config_flags, build_config, config_values, orpo_loss
from orpo_dist.batching.steps import StepPlan, nll_token_counts
from orpo_dist.data import columns_of, limits_of, make_encoder, prepare
from orpo_dist.models.model import load_tokenizer, make_policy
from orpo_dist.scoring.scorer import make_scorer


def gradient(config: ORPOConfig) -> tuple[Any, float]:
    """The model with the gradient of the first step in its weights, and that step's loss."""
    # Weights, in an adapter where the config asks for one, and free of dropout: both answers of a
    # pair have to meet the same network.
    model = make_policy(None, config).train()

    # Rows to token ids: an encoder renders the chat template, tokenises and cuts.
    tokenizer = load_tokenizer(str(config.model), config)
    encoder = make_encoder(tokenizer, config, limits_of(config, model.config))
    pairs = prepare(
        config.data_path, encoder, columns_of(config, training=True), config.train_split
    )

    # How the model is scored: in packed batches, if its architecture proves that they are exact.
    scorer = make_scorer(model, config.attention, config.nll_scope, tokenizer.pad_token_id or 0)

    # Which pairs make a step, drawn by the seed alone, and how they are cut into micro-batches.
    plan = StepPlan(
        lengths=pairs.lengths,  # (N, 3): tokens of prompt, chosen, rejected
        nll_tokens=nll_token_counts(pairs.lengths, config.nll_scope),
        global_batch=config.pairs_per_rank_step,
        micro_batch=config.batch_size,
        seed=config.seed,
        hidden_size=model.config.get_text_config().hidden_size,
        padded=scorer.padded,
    )
    step = next(plan.epoch(0))

    # Each micro-batch contributes a share: sums over its pairs, divided by the counts of the whole
    # step. So the shares add up to one loss, and their gradients to its gradient, for every cut.
    loss = 0.0
    for indices in step.micro_batches:
        batch = scorer.collate(pairs.flat(indices)).to(model.device)
        scores = scorer.score(model, batch)  # log-probs of both answers of every pair
        counts = step.total_pairs, step.total_nll_tokens
        share, _ = orpo_loss(scores, config.orpo_alpha, config.loss_form, *counts)
        share.backward()
        loss += share.item()
    return model, loss


def update(model: Any, config: ORPOConfig) -> float:
    """AdamW's first step at the peak learning rate; returns the norm of the gradient before it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm or float("inf"))
    decayed = {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay}
    others = {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0}
    torch.optim.AdamW([decayed, others], lr=config.lr).step()
    return float(norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_config_flags(parser)
    config = build_config(config_values(parser.parse_args()))
    model, loss = gradient(config)
    print(f"loss {loss:.6f}, norm of the gradient {update(model, config):.6f}")


if __name__ == "__main__":
    main()
