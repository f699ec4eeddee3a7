"""The objective against the paper's formula, over the whole range of log-probs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist.base.types import PairScores
from orpo_dist.scoring.objective import EDGE, log1mexp, log_odds_ratio, orpo_loss

LOGPS = st.one_of(
    st.floats(-1e4, 0.0, width=32),
    st.sampled_from([0.0, -1e-8, -1e-6, -EDGE, -1e-3, -0.6931, -50.0, -104.0, -1e4]),
)


def scores(chosen: list[float], rejected: list[float], **kwargs: object) -> PairScores:
    """Scores whose NLL is 3 tokens of the chosen answer's mean."""
    c = torch.tensor(chosen, requires_grad=True)
    r = torch.tensor(rejected, requires_grad=True)
    ones = torch.ones(len(chosen))
    return PairScores(c, r, -3 * c, 3 * ones, kwargs.get("weight", ones))  # type: ignore[arg-type]


def test_log_odds_ratio_is_the_formula_of_the_paper() -> None:
    # log [p_c / (1 - p_c)] - log [p_r / (1 - p_r)] with p_c = 1/2, p_r = 1/4: log 1 - log 1/3.
    value = log_odds_ratio(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]))
    assert value.item() == pytest.approx(math.log(3), abs=1e-6)


def test_losses_by_hand() -> None:
    pair = scores([math.log(0.5)], [math.log(0.25)])
    sft, odds = math.log(2), -math.log(1 / (1 + 1 / 3))
    additive, metrics = orpo_loss(pair, 0.7)
    assert additive.item() == pytest.approx(sft + 0.7 * odds, abs=1e-6)
    assert orpo_loss(pair, 0.7, "convex")[0].item() == pytest.approx(
        0.3 * sft + 0.7 * odds, abs=1e-6
    )
    assert metrics.odds_loss.item() == pytest.approx(odds, abs=1e-6)
    assert metrics.correct.item() == 1
    assert orpo_loss(scores([-1.0, -2.0], [-1.0, -1.0]), 0.7)[1].correct.item() == 0  # nor a tie


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(LOGPS, LOGPS), min_size=1, max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_loss_and_gradients_are_finite_for_any_log_prob(
    pairs: list[tuple[float, float]], alpha: float
) -> None:
    for form in ("additive", "convex"):
        both = scores([c for c, _ in pairs], [r for _, r in pairs])
        loss, _ = orpo_loss(both, alpha, form)  # type: ignore[arg-type]
        loss.backward()
        assert torch.isfinite(loss)
        for tensor in (both.chosen_logp, both.rejected_logp):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()
            assert tensor.grad.abs().max() <= 1 / EDGE + 2  # bounded, not merely finite


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e4, -2 * EDGE))
def test_log1mexp_is_exact_below_the_edge(logp: float) -> None:
    expected = math.log(-math.expm1(logp)) if logp > -700 else 0.0
    got = log1mexp(torch.tensor(logp, dtype=torch.float64)).item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_log1mexp_goes_on_smoothly_and_falls_up_to_zero() -> None:
    logp = torch.linspace(-3 * EDGE, 0, 301, dtype=torch.float64)
    values = log1mexp(logp)
    assert (values[1:] < values[:-1]).all()
    assert values[1:].sub(values[:-1]).abs().max() < 0.02  # no jump at the edge
    assert torch.isfinite(values).all()


def test_the_odds_are_taken_in_fp32_also_for_half_precision_scores() -> None:
    assert log_odds_ratio(*torch.tensor([[-0.5], [-1.5]]).bfloat16()).dtype == torch.float32
    assert log_odds_ratio(*torch.tensor([[-0.5], [-1.5]]).double()).dtype == torch.float64


def test_alpha_zero_is_sft_alone_and_convex_one_is_odds_alone() -> None:
    pair = scores([-0.5, -1.0], [-0.7, -0.2])
    loss, _ = orpo_loss(pair, 0.0)
    assert loss.item() == pytest.approx(0.75)
    gradient = torch.autograd.grad(loss, pair.rejected_logp, allow_unused=True)[0]
    assert gradient is None or not gradient.any()
    changed_nll = PairScores(
        pair.chosen_logp, pair.rejected_logp, pair.nll_sum * 9, pair.nll_tokens, pair.weight
    )
    assert torch.equal(orpo_loss(pair, 1.0, "convex")[0], orpo_loss(changed_nll, 1.0, "convex")[0])


@pytest.mark.parametrize("form", ["additive", "convex"])
def test_shares_of_a_cut_step_add_up_to_the_whole(form: str) -> None:
    chosen, rejected = [-0.5, -1.0, -2.0], [-0.7, -0.2, -3.0]
    whole, _ = orpo_loss(scores(chosen, rejected), 0.5, form)  # type: ignore[arg-type]
    parts = [
        orpo_loss(scores(chosen[i:j], rejected[i:j]), 0.5, form, 3, 9)[0]  # type: ignore[arg-type]
        for i, j in ((0, 1), (1, 3))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)  # type: ignore[union-attr]


def test_filler_pairs_weigh_nothing() -> None:
    filler = scores([-0.5, -9.0], [-0.7, -0.1], weight=torch.tensor([1.0, 0.0]))
    alone = scores([-0.5], [-0.7])
    (loss, metrics), (expected, _) = orpo_loss(filler, 0.5), orpo_loss(alone, 0.5)
    assert loss.item() == pytest.approx(expected.item())
    assert metrics.pairs.item() == 1
    loss.backward()
    assert filler.chosen_logp.grad is not None
    assert filler.chosen_logp.grad[1] == 0
