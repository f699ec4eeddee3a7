"""A run folder -> README.md, the model card: what was trained, on what, how well, how to load it.

It names models and data as others know them, by hub id or by the last part of a path: a folder of
this machine means nothing elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orpo_dist.config import ORPOConfig, load_config
from orpo_dist.models.adapters import base_of, is_adapter
from orpo_dist.runs.folder import CARD, CARD_MARK, RunFolder, is_own_card, read_json, write_text

# Told on every card, also where they are the defaults.
IMPORTANT = (
    "orpo_alpha", "loss_form", "nll_scope", "lr", "epochs", "max_steps", "batch_size",
    "gradient_accumulation", "global_batch_size", "max_prompt_length", "max_completion_length",
    "max_seq_length", "mixed_precision", "seed",
)  # fmt: skip
# Of this machine and of how the run was followed, or told elsewhere on the card.
UNTOLD = (
    "model", "project_name", "overwrite", "resume_from_checkpoint", "data_path",
    "valid_data_path", "chat_template", "stages", "log", "logging_steps", "trainer_args",
    "metric_for_best_model", "save_strategy", "save_steps", "save_total_limit", "eval_strategy",
    "eval_steps",
)  # fmt: skip
METRICS = (
    "loss", "loss/sft", "loss/odds_ratio", "rewards/accuracies", "logps/margins", "logps/chosen",
    "logps/rejected",
)  # fmt: skip


def write_card(folder: Path) -> None:
    """Write README.md beside the model in a run folder; one that is not ours is left alone."""
    path = folder / CARD
    if path.exists() and not is_own_card(path):
        return
    config = load_config(RunFolder(folder).config)
    trained = [_data(folder, config), _settings(config), _metrics(folder)]
    parts = [
        CARD_MARK,
        f"# {folder.resolve().name}",
        _what(folder, config),
        *(trained if not _members(folder) else []),  # a soup has the settings of its first member
        _loading(folder),
        _versions(folder),
    ]
    front = _front_matter(folder, config).to_yaml()
    text = "\n\n".join(part for part in parts if part)
    write_text(path, f"---\n{front}\n---\n\n{text}\n")


def public_name(source: str) -> str:
    """A model or a data source as others know it: its hub id, or the name of its folder or file."""
    if found := re.search(r"models--([^/]+?)--([^/]+)/snapshots/", f"{source}/"):
        return f"{found[1]}/{found[2]}"
    return source if is_hub_id(source) else Path(source).name


def is_hub_id(source: str) -> bool:
    """Whether a name with an owner cannot be that of a file or a folder here."""
    path = Path(source).expanduser()
    local = source.startswith((".", "~", "/")) or path.suffix[1:].isalpha() or path.exists()
    return source.count("/") == 1 and not local


def _front_matter(folder: Path, config: ORPOConfig) -> Any:
    from huggingface_hub import ModelCardData

    bases, adapter = _bases(folder, config), is_adapter(folder)
    names = [public_name(base) for base in bases]
    sources = [path for stage in config.stage_configs() for path in stage.data_path]
    return ModelCardData(
        base_model=names[0] if len(names) == 1 else names or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["orpo", *(["lora"] if adapter else []), "orpo_dist"],
        datasets=list(dict.fromkeys(filter(is_hub_id, sources))) or None,
        **_license(bases),
    )


def _bases(folder: Path, config: ORPOConfig) -> list[str]:
    """What an adapter loads on, what a whole model was trained from, what a soup is made of."""
    if is_adapter(folder):
        return [base_of(folder)[0]]
    return [str(member["path"]) for member in _members(folder)] or [str(config.model)]


def _members(folder: Path) -> list[dict[str, Any]]:
    """Of a soup: what went into it."""
    members = read_json(folder / "soup.json").get("members", [])
    return [member for member in members if member.get("kept", True)]


def _license(bases: list[str]) -> dict[str, Any]:
    """The licence that the cards of the bases state alike, where they are folders with cards."""
    stated = [_stated_license(Path(base).expanduser() / CARD) for base in bases]
    return stated[0] if all(one == stated[0] for one in stated) else {}


def _stated_license(card: Path) -> dict[str, str]:
    import yaml
    from huggingface_hub import ModelCard

    try:
        stated = ModelCard(card.read_text(encoding="utf-8")).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):  # no card, or a broken one
        return {}
    names = ("license", "license_name", "license_link")
    return {name: stated[name] for name in names if isinstance(stated.get(name), str)}


def _what(folder: Path, config: ORPOConfig) -> str:
    if members := _members(folder):
        method = read_json(folder / "soup.json").get("method")
        rows = [(f"`{public_name(str(m['path']))}`", _figure(m.get("weight"))) for m in members]
        return "\n".join([
            f"The weights of several models made one, by the method {method}.",
            "",
            *_table(("model", "weight"), rows),
        ])  # fmt: skip
    kind = "all its weights"
    if config.peft:
        kind = f"a {'DoRA' if config.use_dora else 'LoRA'} adapter of rank {config.lora_r}"
        kind += "" if is_adapter(folder) else ", merged into it"
    return (
        f"`{public_name(str(config.model))}`, fine-tuned on preferences with ORPO "
        f"([arXiv 2403.07691](https://arxiv.org/abs/2403.07691)): {kind}."
    )


def _data(folder: Path, config: ORPOConfig) -> str:
    """Files by name, and what became of their rows."""
    found: dict[str, None] = {}
    for stage in config.stage_configs():
        found |= dict.fromkeys(public_name(path) for path in stage.data_path)
    lines = [f"Trained on {', '.join(f'`{name}`' for name in found)}."] if found else []
    if held_out := [f"`{public_name(path)}`" for path in config.valid_data_path]:
        lines = [*lines, f"Evaluated on {', '.join(held_out)}."]
    rows = [
        (name, part["rows"], part["pairs"], _skipped(part["skipped"]))
        for name, part in read_json(RunFolder(folder).data_report).items()
        if isinstance(part, dict)
    ]
    if rows:
        lines = [*lines, "", *_table(("data", "rows", "pairs", "skipped"), rows)]
    return "\n".join(["## Data", "", *lines]) if lines else ""


def _skipped(reasons: Mapping[str, Any]) -> str:
    return ", ".join(f"{entry['count']} {reason}" for reason, entry in reasons.items()) or "none"


def _settings(config: ORPOConfig) -> str:
    """The important ones, and those that are not the defaults."""
    defaults = {name: field.default for name, field in ORPOConfig.model_fields.items()}
    rows = [
        (f"`{name}`", "default" if value is None else f"`{value}`")
        for name, value in config.model_dump().items()
        if name in IMPORTANT
        or (name not in UNTOLD and value != defaults[name] and value is not False)
    ]
    template = {None: "the tokenizer's own", "none": "none, plain text as it is"}
    rows.append(("`chat_template`", template.get(config.chat_template, "one that was given")))
    if config.stages:
        rows.append(("`stages`", f"{len(config.stages)}, each going on from the last"))
    return "\n".join(["## Settings", "", *_table(("setting", "value"), rows)])


def _metrics(folder: Path) -> str:
    metrics = read_json(RunFolder(folder).run).get("metrics", {})
    rows = [
        (name, *(_figure(metrics.get(prefix + name)) for prefix in ("", "eval/")))
        for name in METRICS
        if name in metrics or f"eval/{name}" in metrics
    ]
    if not rows:
        return ""
    return "\n".join(["## Metrics", "", *_table(("metric", "last of training", "held out"), rows)])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _loading(folder: Path) -> str:
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH-OR-HUB-ID")',
    ]
    note = "It stops by itself: `generation_config.json` holds the end that was trained."
    if is_adapter(folder):
        code[0] += ", GenerationConfig"
        code += ['model.generation_config = GenerationConfig.from_pretrained("PATH-OR-HUB-ID")']
        note = (
            "transformers takes generation settings from the base; those beside the adapter hold "
            "the end that was trained. With PEFT it is `AutoPeftModelForCausalLM`, and the same."
        )
    code += ['tokenizer = AutoTokenizer.from_pretrained("PATH-OR-HUB-ID")']
    return "\n".join(["## Loading", "", "```python", *code, "```", "", note])


def _versions(folder: Path) -> str:
    versions = read_json(RunFolder(folder).run).get("versions", {})
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"## Versions\n\n{text}" if text else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines]
