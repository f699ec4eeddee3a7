"""PEFT: an adapter that is saved without a model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from orpo_dist.upstream.register import reaches_for


@reaches_for(
    "peft.peft_model:PeftModel.create_or_update_model_card(output_dir)",
    "peft.peft_model:PeftModel.save_pretrained@create_or_update_model_card",
    because="PEFT writes a README.md that names the base by its path on this machine",
    upstream="peft/peft_model.py, PeftModel.save_pretrained (0.21)",
    until="save_pretrained can be told to write no card",
)
@contextlib.contextmanager
def without_card(model: Any) -> Iterator[None]:
    """Within it, PEFT writes no README.md, and does not touch one that is there."""
    if not hasattr(model, "create_or_update_model_card"):
        yield
        return
    model.create_or_update_model_card = lambda folder: None
    try:
        yield
    finally:
        del model.create_or_update_model_card
