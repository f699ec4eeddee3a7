"""Curriculum: the pairs of an epoch from easy to hard, drawn from a pool that grows.

With a share t of an epoch behind, the pool is the easiest share ``c(t)`` of its pairs, and the next
pair is drawn from what is left of it. Since ``c(t) >= t``, something is always left, and every pair
comes exactly as often as without a curriculum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The easiest share that is open, from t and the share s that is open at the start. ``root`` is the
# competence of Platanios et al. 2019 (arXiv 1903.09848, eq. 7); ``steps`` opens s at a time.
PACINGS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda t, s: s + (1 - s) * t,
    "root": lambda t, s: math.sqrt(s * s + (1 - s * s) * t),
    "steps": lambda t, s: s * (math.floor(t / s + 1e-9) + 1),
}


@dataclass(frozen=True)
class Curriculum:
    """difficulty: (N,) of each pair, higher is harder. epochs: how many first epochs are ordered.

    pacing: a name of ``PACINGS``. start: share of the pairs that are open at the start; with 0 and
    ``linear`` the order is strict. Equal difficulties come in random order.
    """

    difficulty: np.ndarray
    epochs: int = 1
    pacing: str = "linear"
    start: float = 0.0

    def arrange(self, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The pairs of an epoch, (M,) indices that may repeat, in training order."""
        shuffled = rng.permutation(pairs)
        easy_first = shuffled[np.argsort(self.difficulty[shuffled], kind="stable")]
        return easy_first[self._places(len(pairs), rng)]

    def _places(self, count: int, rng: np.random.Generator) -> list[int]:
        """Which of ``count`` sorted places comes when."""
        pace = PACINGS[self.pacing]
        chances = rng.random(count).tolist()
        pool: list[int] = []
        opened, order = 0, []
        for at, chance in enumerate(chances):
            # 1e-9: rounding must not open a place too many
            wanted = math.ceil(pace(at / count, self.start) * count - 1e-9)
            wanted = min(count, max(at + 1, wanted))
            pool.extend(range(opened, wanted))
            opened = wanted
            drawn = int(chance * len(pool))
            order.append(pool[drawn])
            pool[drawn] = pool[-1]
            pool.pop()
        return order
