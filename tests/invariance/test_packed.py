"""The packed path equals the padded one: scores and every gradient, family by family."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import orpo_dist.scoring.attention
import orpo_dist.scoring.head
from orpo_dist import ORPOConfig, ORPOTrainer, UserError, load
from orpo_dist.base.types import Pair
from orpo_dist.models.randomness import quiet
from orpo_dist.scoring.masks import PackedMask
from orpo_dist.scoring.packing import pack_pairs
from orpo_dist.scoring.scorer import Scorer, make_scorer
from tests.invariance.test_normalisation import run

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {
    "vocab_size": 97, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 16,
}  # fmt: skip
GEMMA2 = {
    "head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8,
}  # fmt: skip
GEMMA3 = {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0}

# Settings of small models whose windows, caps and scales bite at these lengths.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SMALL),
    "llama tied": ("LlamaConfig", "LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SMALL),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**SMALL, "head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**SMALL, "sliding_window": 6}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**SMALL, **GEMMA2}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**SMALL, **GEMMA3}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", SMALL),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "opt": ("OPTConfig", "OPTForCausalLM", OPT),
    "cohere": ("CohereConfig", "CohereForCausalLM", {**SMALL, "logit_scale": 0.3}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {**SMALL, "logits_scaling": 3.0}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**SMALL, "num_local_experts": 4}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", SMALL),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", SMALL),
}


def small_model(family: str) -> Any:
    config, model, settings = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    quiet(made)
    with torch.no_grad():
        for parameter in made.parameters():  # sharper than initialisation: mistakes show
            parameter.mul_(2)
    return made


def some_pairs() -> list[Pair]:
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 97, (count,), generator=draw).tolist()

    return [
        Pair(tokens(p), tokens(c), tokens(r)) for p, c, r in ((11, 7, 9), (3, 14, 2), (1, 2, 3))
    ]


def scored(model: Any, scorer: Scorer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scores, and the gradients of a sum in which every pair and side counts differently."""
    model.zero_grad()
    scores = scorer.score(model, scorer.collate(some_pairs()))
    weights = torch.tensor([1.0, 2.0, 3.0])
    total = (weights * (scores.chosen_logp - 0.5 * scores.rejected_logp)).sum()
    (total + 0.1 * scores.nll_sum.sum()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    names = ("chosen_logp", "rejected_logp", "nll_sum", "nll_tokens")
    return {name: getattr(scores, name).detach() for name in names}, gradients


def assert_equal_paths(model: Any, scope: str = "completion") -> None:
    packed = make_scorer(model, "packed", scope)
    assert packed.packed
    (scores, gradients), (expected, expected_gradients) = (
        scored(model, scorer) for scorer in (packed, Scorer(False, scope))
    )
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(g.abs().max().item() for g in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * max(1, largest), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["completion", "prompt_and_completion"])
def test_packed_equals_padded(family: str, scope: str) -> None:
    assert_equal_paths(small_model(family), scope)


@pytest.mark.parametrize("family", ["llama tied", "gemma2", "opt"])
def test_with_chunked_scoring(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, calls = [], []
    whole = orpo_dist.scoring.head._TargetLogps
    monkeypatch.setattr(orpo_dist.scoring.head, "LOGITS_BYTES", 0)
    monkeypatch.setattr(orpo_dist.scoring.head, "MIN_CHUNK", 5)

    class Counting:
        @staticmethod
        def apply(logits: Any, targets: Any, hardware: Any) -> Any:
            seen.append(len(targets))
            return whole.apply(logits, targets, hardware)

    monkeypatch.setattr(orpo_dist.scoring.head, "_TargetLogps", Counting)
    model = small_model(family)
    assert_equal_paths(model)
    assert max(seen) == 5
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    scored(model, Scorer(True))
    assert len(calls) == 1  # an engine sees one call, however many chunks there are


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "lm_head"]])
def test_with_an_adapter_and_checkpointing(target: Any) -> None:
    model = small_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted.train()
    assert_equal_paths(adapted)


def test_with_a_bias_in_the_head() -> None:
    model = small_model("llama")
    model.lm_head = torch.nn.Linear(32, 97, bias=True)
    assert_equal_paths(model)


def test_a_window_does_bite() -> None:
    """Otherwise the families with windows above would prove nothing."""
    model = small_model("mistral")
    scorer = make_scorer(model, "packed")
    narrow = scored(model, scorer)[0]["chosen_logp"]
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert (scored(model, scorer)[0]["chosen_logp"] - narrow).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["auto", "packed"])
def test_recurrent_models_are_recognised(attention: str) -> None:
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    model = transformers.MambaForCausalLM(config)
    if attention == "packed":
        with pytest.raises(UserError, match=r"MambaForCausalLM .* use auto or padded"):
            make_scorer(model, attention)
    else:
        assert not make_scorer(model, attention).packed


def test_a_model_that_packs_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some hybrids do: they take the argument and let answers see each other."""
    right = orpo_dist.scoring.attention.packed_attention

    def leaky(query: Any, key: Any, value: Any, mask: Any, *rest: Any) -> Any:
        total = sum(sum(segment) for segment in mask.segments)
        return right(query, key, value, PackedMask(((1, total - 2, 1),)), *rest)

    monkeypatch.setattr(orpo_dist.scoring.attention, "packed_attention", leaky)
    model = small_model("llama")
    assert not make_scorer(model, "auto").packed
    assert "forward" not in vars(model)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="scores differently packed"):
        make_scorer(model, "packed")


def test_other_calls_of_the_model_stay_as_they_were(tiny_model: Any) -> None:
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9])

    def outputs() -> list[torch.Tensor]:
        logits = tiny_model(ids, attention_mask=mask).logits
        generated = tiny_model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        return [logits, generated]

    before = outputs()
    assert make_scorer(tiny_model, "auto").packed
    for one, other in zip(before, outputs(), strict=True):
        torch.testing.assert_close(one, other)


def test_no_padding_and_every_prompt_once() -> None:
    pairs = some_pairs()
    batch = pack_pairs(pairs)
    assert batch.input_ids[0].tolist() == [
        t for p in pairs for t in p.prompt + p.chosen + p.rejected
    ]
    assert batch.position_ids[0, :27].tolist() == [*range(18), *range(11, 20)]
    assert len(batch.targets) == sum(len(p.chosen) + len(p.rejected) for p in pairs)
    assert pack_pairs(pairs, real=False).weight.tolist() == [0, 0, 0]


@pytest.mark.parametrize("changes", [{}, {"peft": True}, {"nll_scope": "prompt_and_completion"}])
def test_whole_runs_are_equal(
    tiny_model: Any, tokenizer: Any, demo_rows: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    runs = [
        run(
            copy.deepcopy(tiny_model),
            tokenizer,
            demo_rows[:40],
            tmp_path,
            attention=path,
            **changes,
        )
        for path in ("packed", "padded")
    ]
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    for name, tensor in runs[1][1].items():
        torch.testing.assert_close(runs[0][1][name], tensor, atol=5e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_with_a_quantised_base(tiny_model_dir: Path, quantization: str) -> None:
    """Not to 1e-5: quantised products round by row and outliers of whatever is in the batch."""
    from orpo_dist.models.model import load_policy

    config = ORPOConfig(model=str(tiny_model_dir), peft=True, quantization=quantization)
    model = load_policy(config)
    packed, padded = (scored(model, make_scorer(model, path))[0] for path in ("packed", "padded"))
    torch.testing.assert_close(packed["chosen_logp"], padded["chosen_logp"], atol=2e-2, rtol=0)


def test_evaluating_int4_leaves_its_gradients_alone(tiny_model_dir: Path) -> None:
    """bitsandbytes 0.50 repacks int4 weights for AVX512 in evaluation, which broke training."""
    from orpo_dist.models.model import load_policy

    model = load_policy(ORPOConfig(model=str(tiny_model_dir), peft=True, quantization="int4"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.train()
    before = scored(model, Scorer(False))[1]
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    model.train()
    after = scored(model, make_scorer(model, "padded"))[1]
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, atol=1e-6, rtol=1e-4)


def test_batched_generation_with_absolute_positions_stays_right() -> None:
    """Generation reads the forward's signature to find out that positions can be given."""
    model = small_model("gpt2").eval()
    ids = torch.tensor([[0, 0, 0, 7, 8, 9], [11, 12, 13, 14, 15, 16]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, eos_token_id=-1, **options)
    assert make_scorer(model, "packed").packed
    assert torch.equal(model.generate(ids, eos_token_id=-1, **options), before)


def test_saved_models_know_nothing_of_packing(
    tiny_model_dir: Path, demo_rows: Any, tmp_path: Path
) -> None:
    config = ORPOConfig(project_name=str(tmp_path), max_steps=1, attention="packed", log="none")
    trainer = ORPOTrainer(str(tiny_model_dir), config, demo_rows[:8])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = (tmp_path / "saved" / "config.json").read_text()
    assert "orpo" not in json.dumps(json.loads(saved))
    assert load(tmp_path / "saved").model.config._attn_implementation == "sdpa"
