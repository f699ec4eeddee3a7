"""Small random Llamas with the tokenizer and template habits of thirteen kinds of models.

``make_kind(name, folder)`` writes one of them; the fixture ``kind_dir`` keeps one of each for the
whole session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "examples" / "demo" / "train.jsonl"
WORDS = 500  # of the tokenizers, before the tokens that their templates are made of
SPLIT = (  # words, single digits, and the spaces before them, as Qwen and Llama 3 do
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Tools, calls and results, and thoughts: kept in the last turn only, as Qwen3 does.
QWEN3 = r"""
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}
  {{- '# Tools\n' -}}
  {%- for tool in tools -%}{{- tool | tojson + '\n' -}}{%- endfor -%}
  {{- '<|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}
  {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}
{%- endif -%}
{%- set turn = namespace(last=messages | length - 1, looking=true) -%}
{%- for m in messages[::-1] -%}
  {%- if turn.looking and m.role == 'user' -%}
    {%- set turn.looking = false -%}
    {%- set turn.last = messages | length - 1 - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
  {%- elif m.role == 'assistant' -%}
    {%- set content = m.content if m.content is string else '' -%}
    {%- set thought = '' -%}
    {%- if m.reasoning_content is string -%}
      {%- set thought = m.reasoning_content -%}
    {%- elif '</think>' in content -%}
      {%- set thought = content.split('</think>')[0].rstrip('\n') -%}
      {%- set thought = thought.split('<think>')[-1].lstrip('\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.index0 > turn.last and (loop.last or thought) -%}
      {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
    {%- else -%}
      {{- content -}}
    {%- endif -%}
    {%- for call in m.tool_calls or [] -%}
      {%- set call = call.function if call.function else call -%}
      {{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' -}}
      {{- call.arguments if call.arguments is string else (call.arguments | tojson) -}}
      {{- '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- elif m.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + m.content -}}
    {{- '\n</tool_response><|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  GENERATION
{%- endif -%}
"""
NO_THOUGHT = r"""{%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}"""
OPEN_THOUGHT = r"{{- '<think>\n' -}}"

# The generation prompt opens a thought, and thoughts in messages are dropped.
R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}"
    "<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    + ALTERNATE
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}" + ALTERNATE + "{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Its newlines are a matter of Jinja's trim_blocks.
ZEPHYR = (
    "{% for m in messages %}\n{% if m.role in ('system', 'user', 'assistant') %}\n"
    "{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
# An answer's end differs from that of earlier turns, and the prompt stops before the channel.
HARMONY = (
    "<|start|>system<|message|>You are careful.<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
BLOCKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """template: Jinja text, named ones, or None. special, plain: tokens added to the words.

    adds_bos: whether the tokenizer puts BOS before plain text. spare: rows of the embedding beyond
    the tokenizer's ids (negative: too few). generation: of generation_config.json, written as it is
    even where transformers would not save it.
    """

    template: str | dict[str, str] | None
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    pad: str | None = None
    plain: tuple[str, ...] = ()
    adds_bos: bool = False
    spare: int = 0
    generation: dict[str, Any] = field(default_factory=dict)


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHT = ("<think>", "</think>")
CALLS = (*THOUGHT, "<tool_call>", "</tool_call>")
QWEN = {"special": IM, "eos": "<|im_end|>", "pad": "<|endoftext|>"}
S = {"special": ("<s>", "</s>"), "eos": "</s>", "bos": "<s>", "adds_bos": True}
WITH_NO_THOUGHT = QWEN3.replace("GENERATION", NO_THOUGHT)

MADE: dict[str, Kind] = {
    "qwen-base": Kind(CHATML, IM, "<|endoftext|>", pad="<|endoftext|>"),
    "qwen3": Kind(WITH_NO_THOUGHT, **QWEN, plain=CALLS),
    "qwen35": Kind(QWEN3.replace("GENERATION", OPEN_THOUGHT), **QWEN, plain=CALLS),
    "r1": Kind(
        R1, ("<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>"), "<|eos|>", bos="<|bos|>",
        pad="<|eos|>", plain=THOUGHT, adds_bos=True,
    ),
    "gemma": Kind(
        GEMMA, ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>",
        bos="<bos>", pad="<pad>", adds_bos=True,
    ),
    "mistral": Kind(MISTRAL, **S),
    "llama3": Kind(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eot_id|>"),
        "<|end_of_text|>", bos="<|begin_of_text|>", adds_bos=True,
        generation={"temperature": 0.6, "top_p": 0.9},
    ),
    "zephyr": Kind(ZEPHYR, **S),
    "harmony": Kind(
        HARMONY,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|endoftext|>"),
        "<|return|>", pad="<|endoftext|>",
    ),
    "blocks": Kind(BLOCKS, **QWEN),
    "dict-template": Kind({"default": CHATML, "tool_use": WITH_NO_THOUGHT}, **QWEN),
    "bigger-tok": Kind(CHATML, **QWEN, spare=-2),
    "notemplate": Kind(None, ("<|endoftext|>",), "<|endoftext|>"),
    "padded-embedding": Kind(CHATML, **QWEN, spare=61),
}  # fmt: skip
KINDS = tuple(name for name in MADE if name != "padded-embedding")
# Those that can be trained: the one whose tokenizer is larger than its embedding gives way to one
# whose embedding is the larger.
TRAINABLE = (*(name for name in KINDS if name != "bigger-tok"), "padded-embedding")


def make_kind(name: str, folder: Path) -> Path:
    """Write the model and tokenizer of one of ``MADE`` into ``folder``; returns it."""
    kind = MADE[name]
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(folder)
    _model(kind, tokenizer).save_pretrained(folder)
    file = folder / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**values, **kind.generation}), encoding="utf-8")
    return folder


def _tokenizer(kind: Kind) -> Any:
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    words = _words()
    for tokens, special in ((kind.special, True), (kind.plain, False)):
        added = [AddedToken(token, special=special, normalized=False) for token in tokens]
        (words.add_special_tokens if special else words.add_tokens)(added)
    if kind.adds_bos:
        words.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B",
            special_tokens=[(kind.bos, words.token_to_id(kind.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=kind.eos,
        bos_token=kind.bos,
        pad_token=kind.pad,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = kind.template
    return tokenizer


def _words() -> Any:
    """A byte-level BPE of ``WORDS`` tokens, without any special one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    rows = map(json.loads, DEMO.read_text(encoding="utf-8").splitlines())
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([row["prompt"] for row in rows], trainer)
    return words


def _model(kind: Kind, tokenizer: Any) -> Any:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + kind.spare,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model
