"""The proof of packing decides by architecture: never by the draw of weights, nor by precision."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from orpo_dist import UserError
from orpo_dist.base.types import Pair
from orpo_dist.scoring import proof
from orpo_dist.scoring.hardware import Hardware
from orpo_dist.scoring.miniature import REACH, miniature
from orpo_dist.scoring.scorer import kernel_differs, make_scorer
from tests.conftest import disturbed

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
    "long_factor": [4.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": 1024,
}  # fmt: skip


def made(family: str, **settings: Any) -> Any:
    """A random model of a family of transformers, windows and switches as large as real ones."""
    config = getattr(transformers, f"{family}TextConfig", None)
    config = config or getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config(**{**SIZES, **settings}))


class PositionBlind(transformers.LlamaForCausalLM):
    """Takes positions and counts for itself."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = CountingModel(config)
        self.post_init()


class CountingModel(transformers.LlamaModel):
    def forward(self, input_ids: Any = None, position_ids: Any = None, **others: Any) -> Any:
        return super().forward(input_ids=input_ids, **others)


class Averaging(transformers.LlamaForCausalLM):
    """Recurrent, and does not say so: every layer adds a running mean of what came before."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.model.layers = torch.nn.ModuleList(
            RunningMean(config, number) for number in range(config.num_hidden_layers)
        )
        self.post_init()


class RunningMean(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> Any:
        output = super().forward(hidden_states, *args, **others)
        count = torch.arange(1, output.shape[1] + 1, device=output.device)[:, None]
        return output + output.cumsum(1) / count


PHIMOE = {"sliding_window": 64, "num_local_experts": 4}
GPT_OSS = {"head_dim": 8, "sliding_window": 128, "num_local_experts": 4, "num_experts_per_tok": 2}

WRONG: dict[str, Callable[[], Any]] = {
    "position-blind": lambda: PositionBlind(transformers.LlamaConfig(**SIZES)),
    "recurrent": lambda: Averaging(transformers.LlamaConfig(**SIZES)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_architectures_are_padded_and_that_is_said(
    name: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = WRONG[name]().to(dtype)
    caplog.set_level(logging.WARNING, logger="orpo_dist")
    assert not make_scorer(model, "auto").packed
    assert "attention: padded, because" in caplog.text
    assert "2 to 5 times as long" in caplog.text
    assert "forward" not in vars(model) and "forward" not in vars(model.get_output_embeddings())
    with pytest.raises(UserError, match="use auto or padded"):
        make_scorer(model, "packed")


RIGHT: dict[str, Callable[[], Any]] = {
    "llama": lambda: made("Llama"),
    "a window": lambda: made("Mistral", sliding_window=512),
    "windows, caps and two ropes": lambda: made("Gemma3", head_dim=8, sliding_window=512),
    "window in the mask alone": lambda: made("Phimoe", **PHIMOE),
    "sinks": lambda: made("GptOss", **GPT_OSS, num_key_value_heads=4, num_hidden_layers=2),
    "dynamic rope": lambda: made("Llama", rope_parameters=DYNAMIC),
    "longrope": lambda: made(
        "Phi3", original_max_position_embeddings=1024, rope_parameters=LONGROPE
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_architectures_are_packed_whatever_the_weights(name: str) -> None:
    """Twenty draws each, in bf16, where rounding alone is as large as some mistakes."""
    model = RIGHT[name]()
    for seed in range(20):
        assert make_scorer(disturbed(model.float(), seed).bfloat16(), "auto").packed, seed


def one_by_one(model: Any, pairs: list[Pair]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(proof.alone(model, pairs)[:2])


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Mistral", {"sliding_window": 32}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
        ("Qwen2Moe", {"use_sliding_window": True, "sliding_window": 32, "num_experts": 4,
                      "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                      "shared_expert_intermediate_size": 16}),
        ("Gemma3", {"head_dim": 8, "sliding_window": 32}),
        ("Cohere2", {"sliding_window": 32}),
        ("DeepseekV3", {"num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
                        "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
                        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
                        "qk_rope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 1}),
        ("Phimoe", PHIMOE | {"sliding_window": 32}),
    ],
)  # fmt: skip
def test_what_is_packed_is_right_far_beyond_the_window(
    family: str, settings: dict[str, Any]
) -> None:
    """The decision is checked where it bites: 150 tokens, with the real window."""
    model = made(family, **settings).eval()
    draw = torch.Generator().manual_seed(3)
    pairs = [
        Pair(*(torch.randint(3, 300, (n,), generator=draw).tolist() for n in lengths))
        for lengths in ((70, 80, 43), (5, 110, 60))
    ]
    expected = one_by_one(model, pairs)
    scorer = make_scorer(model, "auto")
    with torch.no_grad():
        scores = scorer.score(model, scorer.collate(pairs))
    found = torch.stack([scores.chosen_logp, scores.rejected_logp])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whoever_asks_may_have_gradients_off(mode: Any) -> None:
    model = made("Llama")
    with mode(), torch.autocast("cpu", torch.bfloat16):
        assert make_scorer(model, "auto").packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_was_changed_by_hand_is_proved_itself(dtype: torch.dtype) -> None:
    model = made("Llama").to(dtype)
    attention = model.model.layers[0].self_attn
    plain = attention.forward
    attention.forward = lambda hidden_states, **others: (
        plain(hidden_states.roll(1, 1), **others)[0],
        None,
    )
    assert not make_scorer(model, "auto").packed


def test_a_miniature_keeps_what_attention_is_made_of() -> None:
    config = transformers.Gemma3TextConfig(
        hidden_size=3840, intermediate_size=15360, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256, sliding_window=1024, vocab_size=262_208,
    )  # fmt: skip
    with torch.device("meta"):
        core = transformers.Gemma3ForCausalLM(config)
    small = miniature(core)
    assert small.config.layer_types == config.layer_types
    assert (small.config.head_dim, small.config.sliding_window) == (256, REACH)
    assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads
    assert sum(p.numel() for p in small.parameters()) < 5e7
    assert config.sliding_window == 1024  # of the model itself


def test_layers_that_differ_are_made_small_as_well() -> None:
    """Dense Gemma 4 has heads of one size in some layers, of another in the rest."""
    config = transformers.Gemma4TextConfig(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, global_head_dim=128, sliding_window=512,
        hidden_size_per_layer_input=0, vocab_size=262_144,
    )  # fmt: skip
    with torch.device("meta"):
        core = transformers.Gemma4ForCausalLM(config)
    small = miniature(core)
    assert small.config.num_attention_heads == 4
    sizes = {layer.self_attn.q_proj.out_features for layer in small.model.layers}
    assert sizes == {4 * 64, 4 * 128}
    assert sum(p.numel() for p in small.parameters()) < 1e7


class MaskBlind(transformers.GPT2LMHeadModel):
    """Hands every position the mean of the whole row, padding and all."""

    def forward(self, input_ids: Any = None, **others: Any) -> Any:
        output = super().forward(input_ids=input_ids, **others)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output


@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_what_neither_path_scores_as_it_is_alone_is_refused(attention: str) -> None:
    config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(UserError, match="does not honour the attention mask"):
        make_scorer(MaskBlind(config), attention)


@pytest.mark.parametrize("window", [None, 512])
def test_a_kernel_is_tried_with_the_models_own_attention(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of other sizes for values than for queries included, and windows."""
    import torch.nn.attention.varlen as kernels

    from tests.invariance.test_varlen import slow_kernel

    monkeypatch.setattr(Hardware, "runs_kernel", lambda self, query, softcap: softcap is None)
    taken = []

    @functools.wraps(slow_kernel)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        taken.append(args[0].shape[-1])
        return slow_kernel(*args, **kwargs)

    @functools.wraps(slow_kernel)
    def blind(*args: Any, window_size: Any, **kwargs: Any) -> Any:
        return slow_kernel(*args, window_size=(-1, 0), **kwargs)

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not built for this device")

    model = made("Mistral", sliding_window=window)
    if window is None:
        model = made(
            "DeepseekV3", num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
            n_group=1, topk_group=1, moe_intermediate_size=16, kv_lora_rank=16, q_lora_rank=16,
            qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, first_k_dense_replace=1,
        )  # fmt: skip
    monkeypatch.setattr(kernels, "varlen_attn", kernel)
    assert kernel_differs(model, torch.device("cpu")) is None
    assert set(taken) == {8 if window else 16}  # 12 and 6, made one and a multiple of 8
    monkeypatch.setattr(kernels, "varlen_attn", absent)
    assert "does not run here" in str(kernel_differs(model, torch.device("cpu")))
    if window:
        monkeypatch.setattr(kernels, "varlen_attn", blind)
        assert "something else" in str(kernel_differs(model, torch.device("cpu")))
