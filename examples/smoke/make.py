"""Makes what sweeps/smoke.yaml trains: a tiny random Llama with a tokenizer of 400 tokens, and rows
of the demo's data. Its files are kept in the repository; run it to see where they come from.

    python examples/smoke/make.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import orpo_dist.sweeps

DEMO = Path(__file__).parents[1] / "demo"
FOLDER = Path(orpo_dist.sweeps.__file__).parent / "presets" / "smoke"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    """Write model, tokenizer, train.jsonl and valid.jsonl."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = (DEMO / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    for name, rows in (("train", lines[:96]), ("valid", held_out[:32])):
        (FOLDER / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for line in lines for text in json.loads(line).values()]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None,
        initializer_range=0.08, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(FOLDER / "model")
    fast.save_pretrained(FOLDER / "model")


if __name__ == "__main__":
    main()
