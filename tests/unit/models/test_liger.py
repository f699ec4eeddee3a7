"""Liger's layers: which are put in, what is left as it was, and the proof that lets them in.

The kernels themselves run on GPUs alone; here stand others in their place.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from orpo_dist.models import liger
from orpo_dist.models.liger import forget_liger, use_liger, why_not_liger
from tests.unit.models.test_recomputing import model_of, step

CPU = torch.device("cpu")


def kernels_of(model: Any) -> set[str]:
    """Names of the layers in a model that Liger computes."""
    return {
        type(module).__name__
        for module in model.modules()
        if "liger" in getattr(vars(module).get("forward"), "__module__", "")
    }


def test_norms_and_mlps_of_this_model_alone() -> None:
    pytest.importorskip("liger_kernel")
    family = dict(vars(modeling_llama))
    model, other = model_of(), model_of()
    use_liger(model)
    assert kernels_of(model) == {"LlamaRMSNorm", "LlamaMLP"}
    assert kernels_of(other) == kernels_of(model_of()) == set()
    assert "forward" not in vars(model)  # no loss of Liger's
    changed = {name for name, value in family.items() if getattr(modeling_llama, name) is not value}
    assert changed == {liger.ROPE}
    use_liger(model)  # again, as for a second stage
    forget_liger(model)
    assert not kernels_of(model)
    assert all(getattr(modeling_llama, name) is value for name, value in family.items())
    step(model, "packed")


def test_the_rope_of_a_family_stays_plain_on_a_cpu() -> None:
    """Where a miniature is proved while another model trains on a GPU."""
    pytest.importorskip("liger_kernel")
    expected = step(model_of(), "packed")
    model = model_of()
    use_liger(model)
    try:
        assert modeling_llama.apply_rotary_pos_emb.plain
        found = step(model_of(), "packed")
    finally:
        forget_liger(model)
    assert torch.equal(found[0], expected[0])


def test_no_losses_whatever_a_family_takes() -> None:
    pytest.importorskip("liger_kernel")
    for kind in ("llama", "gemma2", "granite", "qwen3_moe", "phi3"):
        on = {name for name, value in liger._switches(kind).items() if value}
        assert "rms_norm" in on <= set(liger.LAYERS)
        assert liger._switches(kind)["fused_linear_cross_entropy"] is False
    assert liger._switches("gpt2") == {}


def test_a_family_without_is_said() -> None:
    pytest.importorskip("liger_kernel")
    model = model_of()
    model.config = copy.deepcopy(model.config)
    model.config.model_type = "gpt2"
    assert why_not_liger(model, CPU) == "has no layers for models of type gpt2"


def norm(error: float) -> Any:
    """Stands in for Liger's RMSNorm: right but for a factor."""

    def forward(self: Any, states: Any) -> Any:
        exact = states.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (1 + error) * self.weight * exact.to(states.dtype)

    return forward


@pytest.mark.parametrize("error", [0.0, 0.2])
def test_the_proof(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[Any] = []

    def use(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                norms.append(module)
                module.forward = norm(error).__get__(module)

    def forget(_: Any) -> None:
        for module in norms:
            del module.forward
        norms.clear()

    monkeypatch.setattr(liger, "_switches", lambda kind: {"rms_norm": True})
    monkeypatch.setattr(liger, "use_liger", use)
    monkeypatch.setattr(liger, "forget_liger", forget)
    model = model_of()
    reason = why_not_liger(model, CPU)
    if error:
        assert reason is not None
        assert reason.startswith("computes something else here (by ")
        assert "plain layers by" in reason and "gradients by" in reason
    else:
        assert reason is None
    assert not kernels_of(model)


def test_what_does_not_run_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels on a CPU, say."""
    pytest.importorskip("liger_kernel")
    assert str(why_not_liger(model_of(), CPU)).startswith("does not run here (")
