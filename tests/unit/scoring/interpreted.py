"""The head's kernels under Triton's interpreter, on a CPU, beside the plain version: JSON.

    TRITON_INTERPRET=1 python -m tests.unit.scoring.interpreted

A process of its own, as Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import torch
from torch import Tensor

from orpo_dist.scoring import head_kernel
from orpo_dist.scoring.finish import Finish
from orpo_dist.scoring.hardware import HERE, Hardware
from orpo_dist.scoring.head import plain_logps, target_logps
from orpo_dist.scoring.head_proof import differs
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.invariance.test_packed import small_model, some_pairs

FINISHES = {
    "plain": Finish(),
    "logit_scale": Finish(times=0.0625),
    "logits_scaling": Finish(over=8.0),
    "capped": Finish(cap=30.0),
    "all": Finish(1.5, 0.5, 5.0),
}
# Rows, words, spread of the logits. Blocks hold 4096 words.
SMALL = ((1, 5, 1.0), (7, 1000, 4.0), (2, 5003, 2.0))
LARGE = (
    (256, 5, 1.0), (300, 1000, 2.0), (7, 32_000, 2.0), (2, 131_072, 2.0), (2, 262_149, 4.0),
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Interpreted(Hardware):
    """A CPU that runs the kernels."""

    def fuses_head(self, *_: Any) -> bool:
        return True


def drawn(rows: int, words: int, spread: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Logits, targets with the first word and the last, and gradients."""
    draw = torch.Generator().manual_seed(rows + words)
    logits = torch.randn(rows, words, generator=draw) * spread
    targets = torch.randint(0, words, (rows,), generator=draw)
    targets[0], targets[-1] = 0, words - 1
    return logits.to(dtype), targets, torch.randn(rows, generator=draw)


def both(logits: Tensor, targets: Tensor, grad: Tensor, finish: Finish) -> list[list[Tensor]]:
    """Log-probs and gradients: of the kernels, of the plain version, and of it in fp64."""
    exact = logits.double()
    ways = [
        (logits, lambda x: target_logps(x, targets, finish, Interpreted())),
        (logits.float(), lambda x: plain_logps(x, targets, finish, HERE)),
        (exact, lambda x: plain_logps(x, targets, finish, HERE)),
    ]
    found = []
    for values, score in ways:
        leaf = values.clone().requires_grad_()
        logps = score(leaf * 1.0)  # nobody else needs the product
        found.append([logps.detach(), *torch.autograd.grad(logps, leaf, grad.to(logps.dtype))])
    return found


def apart(found: Tensor, expected: Tensor, least: float) -> float:
    """The largest difference, relative to values of ``least`` or more."""
    found, expected = found.double(), expected.double()
    assert torch.equal(found.isfinite(), expected.isfinite())
    differences = (found - expected).abs() / expected.abs().clamp(min=least)
    return differences[expected.isfinite()].max().item()


def compared(logits: Tensor, targets: Tensor, grad: Tensor, finish: Finish) -> dict[str, float]:
    ours, plain, exact = both(logits, targets, grad, finish)
    least = 1.0 if logits.dtype == torch.float32 else torch.finfo(torch.float16).smallest_normal
    return {
        "logps": apart(ours[0], exact[0], 1.0),
        "logps, plain in fp32": apart(ours[0], plain[0], 1.0),
        "gradients": apart(ours[1], exact[1], least),
        "gradients, plain in fp32": apart(ours[1], plain[1], least),
    }


def grid() -> dict[str, dict[str, Any]]:
    cases = [*product(SMALL, FINISHES, DTYPES), *product(LARGE, ("plain", "all"), DTYPES[:2])]
    return {
        f"{shape} {finish} {dtype}": {
            "eps": torch.finfo(dtype).eps,
            **compared(*drawn(*shape, dtype), FINISHES[finish]),
        }
        for shape, finish, dtype in cases
    }


def extremes() -> dict[str, dict[str, float]]:
    """Logits that are ruled out, alike, huge, or none; of a view, and beyond 2^31 of them."""
    logits, targets, grad = drawn(6, 5000, 1.0, torch.float32)
    logits[1, :4500] = -torch.inf  # the first block has none that counts
    logits[2] = 3.0
    logits[3] *= 3e4
    targets[1], targets[3] = 4700, logits[3].argmax()
    never, _, _ = drawn(4, 5000, 1.0, torch.float32)
    never[0] = -torch.inf
    never[1, 7], never[2, 4999] = torch.inf, torch.nan
    wide = torch.full((6, 5100), 50.0)
    wide[:, 40:5040] = logits
    far = torch.empty(2**31 + 6000, dtype=torch.bfloat16)  # pages that nobody touches cost nothing
    far = far.as_strided((3, 5000), (2**30 + 16, 1)).copy_(logits[[0, 2, 4]])
    near = far.contiguous()
    logps, sums = head_kernel.forward(far, targets[:3], Finish())
    head_kernel.backward(far, targets[:3], sums, grad[:3], Finish())
    expected = both(near, targets[:3], grad[:3], Finish())[0]
    return {
        "extremes": compared(logits, targets, grad, Finish()),
        "extremes, capped": compared(logits, targets, grad, Finish(cap=30.0)),
        "not finite": compared(never, targets[:4], grad[:4], Finish()),
        "a view": {
            name: float((a - b).abs().max())
            for name, a, b in zip(("logps", "gradients"), view(wide, targets, grad),
                                  both(logits, targets, grad, Finish())[0], strict=True)
        },
        "beyond 2^31": {
            "logps": float((logps - expected[0]).abs().max()),
            "gradients": float((far.float() - expected[1].float()).abs().max()),
        },
    }  # fmt: skip


def view(wide: Tensor, targets: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Columns 40 to 5040 alone, of which no row begins where the one before has ended."""
    part = wide[:, 40:5040]
    assert not part.is_contiguous()
    logps, sums = head_kernel.forward(part, targets, Finish())
    head_kernel.backward(part, targets, sums, grad, Finish())
    assert (wide[:, :40] == 50).all() and (wide[:, 5040:] == 50).all()
    return logps, part


def models() -> dict[str, dict[str, float]]:
    """Scores and all gradients of whole models, whose heads run in chunks or at once."""
    found = {}
    for family in ("llama tied", "gemma2", "cohere", "granite"):
        model = small_model(family)
        assert make_scorer(model, "packed").packed
        results = []
        for hardware in (HERE, Interpreted()):
            model.zero_grad()
            scorer = Scorer(True, hardware=hardware)
            scores = scorer.score(model, scorer.collate(some_pairs()))
            (scores.chosen_logp.sum() - 2 * scores.rejected_logp.sum()).backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            results.append([scores.chosen_logp.detach(), torch.cat(gradients)])
        found[family] = {
            name: float((a - b).abs().max() / max(1.0, float(a.abs().max())))
            for name, a, b in zip(("logps", "gradients"), *results, strict=True)
        }
    return found


def proofs() -> dict[str, str | None]:
    """What the proof itself says of the kernels."""
    cpu = torch.device("cpu")
    return {
        f"{finish} {dtype}": differs(cpu, dtype, 5003, FINISHES[finish])[0]
        for finish, dtype in product(FINISHES, DTYPES)
    }


def main() -> None:
    found = {"grid": grid(), "extremes": extremes(), "models": models(), "proofs": proofs()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
