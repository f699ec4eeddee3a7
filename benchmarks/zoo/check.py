"""One family through the real trainer: scored beside the oracle, trained, saved, planned."""

from __future__ import annotations

import copy
import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.oracle import (
    GRADIENT,
    LOGP,
    LONG,
    SHORT,
    apart,
    one_by_one,
    random_pairs,
    together,
    with_gradient,
)
from benchmarks.zoo.shapes import tiny_config
from benchmarks.zoo.verdict import verdict
from orpo_dist import ORPOConfig, ORPOTrainer, UserError
from orpo_dist.base.reasons import reason_of
from orpo_dist.models.kinds import NOT_BY_THEMSELVES, refuse_not_causal
from orpo_dist.models.model import load_model_config, load_trained
from orpo_dist.planning.data import stated
from orpo_dist.planning.estimate import Estimator, Machine
from orpo_dist.planning.plan import Planner
from orpo_dist.planning.skeleton import Method
from orpo_dist.planning.speed import Rates
from orpo_dist.planning.terminal import heading

ROOT = Path(__file__).parents[2]
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"peft": True},
    "checkpointing": {"gradient_checkpointing": True},
}
HALF_MODES = ("full", "LoRA")
COMMON: dict[str, Any] = {
    "nll_scope": "prompt_and_completion", "max_steps": 2, "log": "none", "batch_size": 4,
    "max_prompt_length": 48, "max_completion_length": 48, "mixed_precision": "none",
}  # fmt: skip

Found = dict[str, Any]


def check(name: str, scratch: Path, modes: list[str] | None = None) -> Found:
    """Everything that is said of a family; ``verdict`` is packed, padded, refused, WRONG or
    TRACEBACK, and ``modes`` holds the figures of each way to train."""
    folder, found = scratch / "model", {"family": name, "modes": {}}
    try:
        save_tiny(name, folder)
    except UserError as error:
        return {**found, "verdict": "refused", "why": str(error)}
    except ImportError as error:  # as the trainer's own loading has it
        why = f"model {name}: cannot be loaded ({reason_of(error)})"
        return {**found, "verdict": "refused", "why": why}
    except Exception as error:
        return {**found, "verdict": "TRACEBACK", "why": _where(error)}
    for mode in modes or list(MODES):
        found["modes"][mode] = _caught(lambda mode=mode: _mode(folder, scratch / mode, mode))
    found["bf16"] = {
        mode: _caught(lambda mode=mode: _in_bf16(folder, scratch / f"bf16 {mode}", mode))
        for mode in HALF_MODES
        if mode in found["modes"]
    }
    found["plan"] = _caught(lambda: _plan(folder))
    return {**found, **verdict(found)}


def save_tiny(name: str, folder: Path) -> None:
    """A random model of the family with a tokenizer of bytes; ``UserError`` if it is refused."""
    from transformers import AutoModelForCausalLM

    if name in NOT_BY_THEMSELVES:  # of which transformers cannot always make a tiny one
        refuse_not_causal(SimpleNamespace(model_type=name), f"model {name}")
    config = tiny_config(name)
    refuse_not_causal(config, f"model {name}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # sharper than initialisation: mistakes show
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.nan_to_num_().add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> Any:
    """A token a byte, and three special ones before them: 259 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    letters = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def rows() -> list[dict[str, str]]:
    text = (ROOT / "examples" / "demo" / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[:8]]


def _mode(folder: Path, scratch: Path, mode: str) -> Found:
    """One way to train: beside the oracle, two steps, saved and loaded again."""
    config = ORPOConfig(project_name=str(scratch), model=str(folder), **COMMON, **MODES[mode])
    heard = _Heard()
    logging.getLogger("orpo_dist").addHandler(heard)
    trainer = ORPOTrainer(str(folder), config, rows())
    logging.getLogger("orpo_dist").removeHandler(heard)
    model = trainer.model
    if config.peft:
        _disturb(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found: Found = {"path": "packed" if trainer.scorer.packed else "padded"}
    found["reason"] = heard.reason
    found["trained"] = trainable / sum(p.numel() for p in model.parameters())
    if config.gradient_checkpointing:
        trainer._checkpoint_as_in_training()
    model.train()
    found |= _beside_oracle(trainer, _reference(folder, model))
    if config.gradient_checkpointing:
        return found  # all else is as without
    trainer.train()
    trainer.save_model(str(scratch / "saved"))
    found["reloaded"] = _reloaded(trainer, scratch / "saved", config)
    if not config.peft:
        found["lost"] = len(_keys(folder) - _keys(scratch / "saved"))
    return found


def _in_bf16(folder: Path, scratch: Path, mode: str) -> Found:
    """What is decided of a model that computes in bf16, and two steps of it."""
    settings = COMMON | MODES[mode] | {"mixed_precision": "bf16"}
    config = ORPOConfig(project_name=str(scratch), model=str(folder), **settings)
    trainer = ORPOTrainer(str(folder), config, rows())
    trainer.train()
    return {"path": "packed" if trainer.scorer.packed else "padded"}


class _Heard(logging.Handler):
    """Why a model is padded, as the warning has it."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("attention: padded, because"):
            self.reason = str(record.args[1]) if isinstance(record.args, tuple) else ""


def _disturb(model: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=draw))


def _reference(folder: Path, trained: Any) -> Any:
    """The same weights in a fresh model with plain attention, in the adapter if there is one."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    except ValueError:  # a family that has one way only
        model = AutoModelForCausalLM.from_pretrained(folder)
    if hasattr(trained, "peft_config"):
        model = get_peft_model(model, copy.deepcopy(trained.peft_config["default"]))
        model.load_state_dict(trained.state_dict())
    return model.eval()


def _beside_oracle(trainer: Any, reference: Any) -> Found:
    """The largest differences on short and on long pairs; of two draws the better one.

    A router may send a token elsewhere over the last bit.
    """
    words = min(250, reference.config.get_text_config().vocab_size)
    found: Found = {}
    for kind, lengths in (("short", SHORT), ("long", LONG)):
        draws = []
        for seed in range(2):
            pairs = random_pairs(lengths, words, seed)
            expected, slope = with_gradient(reference, one_by_one(reference, pairs))
            batch = trainer.scorer.collate(pairs)
            scores, gradient = with_gradient(
                trainer.model, together(trainer.scorer.score(trainer.model, batch), pairs)
            )
            draws.append(((scores - expected).abs().max().item(), apart(gradient, slope)))
            if draws[-1][0] <= LOGP and draws[-1][1] <= GRADIENT:
                break
        found[kind] = min(draws)
    return found


@torch.no_grad()
def _reloaded(trainer: Any, folder: Path, config: ORPOConfig) -> float:
    """How far apart, in nats, the saved model is from the trained one.

    The padding token's own share is left out: transformers makes its row zero whenever it loads a
    Youtu, whatever was saved.
    """
    ids = torch.tensor([random_pairs(SHORT, 250, 5)[0].prompt])
    both: list[Tensor] = []
    for model in (trainer.model.eval(), load_trained(folder, config)):
        logits = model(input_ids=ids, use_cache=False).logits
        logits[..., model.config.get_text_config().pad_token_id] = -torch.inf
        both.append(logits.log_softmax(-1).nan_to_num(neginf=0.0))
    return (both[0] - both[1]).abs().max().item()


def _keys(folder: Path) -> set[str]:
    from safetensors import safe_open

    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= set(tensors.keys())
    return found


def _plan(folder: Path) -> Found:
    """Whether ``orpo-dist plan`` can plan it, and counts what the model holds.

    One candidate, as the others differ in arithmetic alone.
    """
    from transformers import AutoModelForCausalLM

    config = ORPOConfig(model=str(folder), max_prompt_length=32, max_completion_length=32)
    hf_config = load_model_config(str(folder), config)
    estimator = Estimator(hf_config, config, Machine(1, 80.0), (32, 32, 32), partial=True)
    plan = Planner(estimator, stated(config, hf_config, None, None), Rates(1e12, 1.0))
    heading(plan)
    plan.candidate(Method(), "single", False)
    census = estimator.census(Method())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    return {
        "counts": census.total - sum(p.numel() for p in model.parameters()),
        "active": census.active / census.total,
        "flops": census.flops is not None,
        "untraced": estimator.untraced,
    }


def _caught(work: Callable[[], Found]) -> Found:
    try:
        return work()
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"traceback": _where(error)}


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "orpo_dist" in f.filename] or frames
    last = f"{Path(own[-1].filename).name}:{own[-1].lineno}, {Path(frames[-1].filename).name}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]} ({last})"
