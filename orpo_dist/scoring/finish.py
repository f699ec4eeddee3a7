"""What some families do with the logits after the head, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Finish:
    """Cohere multiplies by ``times``, Granite divides by ``over``, Gemma caps softly at ``cap``."""

    times: float | None = None
    over: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Finish:
        """What a model with this config does, of which nobody tells its head."""
        names = "logit_scale", "logits_scaling", "final_logit_softcapping"
        return cls(*(getattr(config, name, None) for name in names))

    def __call__(self, logits: Tensor) -> Tensor:
        if self.times is not None:
            logits = logits * self.times
        if self.over is not None:
            logits = logits / self.over
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    @property
    def scale(self) -> float:
        """Both factors as one."""
        return (1.0 if self.times is None else self.times) / (self.over or 1.0)
