"""Another objective in ten lines: ORPO that asks for a margin.

    python examples/custom_loss.py --model MODEL --data-path pairs.jsonl

Takes every flag of 'orpo-dist train'. The odds of the chosen answer must exceed those of the
rejected one by e^MARGIN before the second term lets go: L_SFT − α log σ(log_odds − MARGIN).
"""

from __future__ import annotations

import argparse
import dataclasses

import torch.nn.functional as F
from torch import Tensor

from orpo_dist import (
    LoadedStep,
    ORPOTrainer,
    PairScores,
    StepMetrics,
    add_config_flags,
    build_config,
    config_values,
    log_odds_ratio,
    train,
)

MARGIN = 0.5  # nats


class MarginTrainer(ORPOTrainer):
    """ORPO with a margin; everything else (packing, engines, logs, resume) is the toolkit's."""

    def compute_objective(self, scores: PairScores, step: LoadedStep) -> tuple[Tensor, StepMetrics]:
        _, metrics = super().compute_objective(scores, step)
        log_odds = log_odds_ratio(scores.chosen_logp, scores.rejected_logp)
        # Sums over the real pairs (weight 1), divided by the counts of the whole step.
        odds = -(scores.weight * F.logsigmoid(log_odds - MARGIN)).sum()
        nll = (scores.weight * scores.nll_sum).sum()
        loss = nll / step.total_nll_tokens + step.orpo_alpha * odds / step.total_pairs
        return loss, dataclasses.replace(metrics, odds_loss=odds.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_config_flags(parser)
    config = build_config(config_values(parser.parse_args()))
    print(train(config, trainer_class=MarginTrainer).path)


if __name__ == "__main__":
    main()
