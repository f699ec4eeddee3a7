"""Going on with other settings: which may change on the way, and which make it another run.

Every checkpoint says in its ``settings.json`` what it was trained with: there alone is the truth,
wherever the run folder has been moved. Compared before a process starts and before weights load;
imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.config.checks import WHOLE_RUN
from orpo_dist.runs.folder import RunFolder, read_json
from orpo_dist.runs.lineage import stage_of

if TYPE_CHECKING:
    from orpo_dist.data import PairDataset

SETTINGS = "settings.json"

# Every setting is in exactly one of these.
PLACES = ("project_name", "overwrite", "resume_from_checkpoint", "stages")  # not compared as such
FREE = (  # may change, and one line says so
    "trust_remote_code", "strict_data", "category_column", "orpo_alpha_start", "orpo_alpha_warmup",
    "epochs", "max_steps", "lr", "warmup_ratio", "weight_decay", "max_grad_norm", "max_bad_steps",
    "mixed_precision", "attention", "max_tokens_per_microbatch", "sequence_parallel",
    "gradient_checkpointing", "activation_offload", "kernels", "lora_dropout", "lora_dtype",
    "merge_adapter", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "save_total_limit", "logging_steps", "early_stopping_patience", "early_stopping_threshold",
    "load_best_model_at_end", "log", "hang_timeout", "async_save",
)  # fmt: skip
CUT = ("batch_size", "gradient_accumulation", "global_batch_size")  # the step stays as it is
FILES = ("data_path", "train_split")  # may be called otherwise if the pairs are the same
JUDGED = (  # may change where no best model is kept, which older evaluations have picked
    "orpo_alpha", "orpo_alpha_schedule", "router_aux_loss_coef", "valid_data_path", "valid_split",
    "metric_for_best_model",
)  # fmt: skip
PLAN = (  # would change which pairs are trained on, and when
    "seed", "data_weights", "data_temperature", "prompt_text_column", "text_column",
    "rejected_text_column", "system_column", "tools_column", "data_format", "implicit_prompt",
    "chat_template", "chat_template_kwargs", "max_prompt_length", "max_completion_length",
    "max_seq_length", "overlong", "curriculum", "difficulty_column", "curriculum_epochs",
    "curriculum_pacing", "curriculum_start",
)  # fmt: skip
STATE = (  # would change what the numbers in a checkpoint mean
    "model", "model_revision", "trainer", "loss_form", "nll_scope", "scheduler", "optimizer",
    "quantization", "peft", "lora_r", "lora_alpha", "target_modules", "use_dora", "trainer_args",
)  # fmt: skip

# Beginnings of the names in trainer_args that change neither data nor state.
FREE_ARGUMENTS = (
    "dataloader_num", "dataloader_pin", "dataloader_persistent", "dataloader_prefetch", "eval_",
    "save_", "log", "report_to", "run_name", "disable_tqdm", "push_to_hub", "hub_", "include_",
    "torch_compile", "ddp_", "skip_memory_metrics", "project", "trackio",
)  # fmt: skip
SAMPLES, SAMPLE = 16, 1 << 16  # of a file of weights: how many pieces are read, of how many bytes

Changed = dict[str, tuple[Any, Any]]


def record(
    asked: ORPOConfig,
    resolved: ORPOConfig,
    step: int,
    train: PairDataset | None,
    valid: PairDataset | None,
) -> dict[str, Any]:
    """What a checkpoint has to say for ``check_changes``.

    asked: the settings as they were given; resolved: as they were in force. step: pairs of one.
    """
    return {
        "asked": asked.model_dump(),
        "resolved": resolved.model_dump(),
        "pairs_per_step": step,
        "model": fingerprint(asked.model),
        **data_of(resolved, train, valid),
    }


def data_of(
    config: ORPOConfig, train: PairDataset | None, valid: PairDataset | None
) -> dict[str, Any]:
    """Numbers and digests of the pairs that are trained and evaluated on."""
    return {
        name: pairs and {"pairs": len(pairs), "digest": _digest(pairs, config)}
        for name, pairs in (("train", train), ("valid", valid))
    }


def _digest(pairs: PairDataset, config: ORPOConfig) -> str:
    """Of all that a plan is made of; margins under a base model differ from machine to machine."""
    content = hashlib.blake2b(pairs.digest().encode())
    if config.data_weights or config.data_temperature or config.curriculum == "files":
        content.update(pairs.source_ids.tobytes())
    if config.curriculum == "difficulty" and pairs.difficulty is not None:
        content.update(pairs.difficulty.tobytes())
    return content.hexdigest()


def fingerprint(model: str | None) -> str | None:
    """Of the files of a local model, read in samples, wherever it lies; None for a hub id."""
    folder = Path(model or "").expanduser()
    if not model or not folder.is_dir():
        return None
    found = hashlib.blake2b()
    for pattern in ("config.json", "adapter_config.json", "tokenizer.json", "*.safetensors"):
        for path in sorted(folder.glob(pattern)):
            size = path.stat().st_size
            found.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for at in sorted({part * size // SAMPLES for part in range(SAMPLES)}):
                    file.seek(at)
                    found.update(file.read(SAMPLE))
    return found.hexdigest()


def check_changes(config: ORPOConfig, world_size: int) -> str:
    """A line on what has changed since the checkpoint that a run would go on from; may be empty.

    config: as the user gave it. Raises ``UserError`` that names all that must not change.
    """
    folder = RunFolder(config.project_name, writes=False)
    checkpoint = folder.checkpoint(config.resume_from_checkpoint)
    number = stage_of(checkpoint) if checkpoint else 0
    stages, said, refused = config.stage_configs(), [], []
    done = number - 1
    if config.resume_from_checkpoint == "auto":
        done = len(folder.finished_stages())
    for at in range(1, min(done, len(stages)) + 1) if config.stages else ():
        free, fixed = _of_done_stage(folder.stage(at).path, stages[at - 1])
        said += [f"stage {at} is done and keeps its {', '.join(free)}"] if free else []
        refused += [f"{text} in stage {at}, which is done" for text in fixed]
    at = max(number, 1)
    if checkpoint and bool(number) == bool(config.stages) and done < at <= len(stages):
        free, fixed = compare(checkpoint, stages[at - 1], world_size)
        said, refused = free + said, fixed + refused
    where = checkpoint or folder.path
    if refused:
        raise UserError(_refusal(where, refused))
    return f"going on from {where} with changed settings: {'; '.join(said)}" if said else ""


def _of_done_stage(folder: Path, config: ORPOConfig) -> tuple[list[str], list[str]]:
    """Names of the changed settings that have no effect any more, and what must not change."""
    written = read_json(folder / SETTINGS)
    changed = _changed(written, config, without=WHOLE_RUN) if written else {}
    fixed = [f"{name} {_show(*changed[name])}" for name in changed if not _may(name, False)]
    return [name for name in changed if _may(name, False)], fixed


def compare(checkpoint: Path, config: ORPOConfig, world_size: int) -> tuple[list[str], list[str]]:
    """What has changed since a checkpoint: what may, and what must not. config: of its stage.

    Raises ``UserError`` for a step that this number of processes cannot make.
    """
    written = read_json(checkpoint / SETTINGS)
    if not written:
        return [], []
    changed, best = _changed(written, config), keeps_score(config)
    shown = {name: f"{name} {_show(*values)}" for name, values in changed.items()}
    free = [text for name, text in shown.items() if name not in CUT and _may(name, best)]
    pairs = int(written["pairs_per_step"])
    kept = keep_step(pairs, config, f"resume_from_checkpoint {checkpoint}")
    cuts = [shown[name] for name in CUT if name in shown]
    if kept.batch_size != config.batch_size:
        cuts.append(f"batch_size {kept.batch_size} instead of {config.batch_size}")
    if cuts:
        free.append(f"{', '.join(cuts)} (a step stays {pairs} pairs)")
    return free, [text for name, text in shown.items() if not _may(name, best)]


def check_trainer(
    checkpoint: Path, config: ORPOConfig, world_size: int, step: int, *pairs: PairDataset | None
) -> str:
    """The same for a trainer, whose steps have ``step`` pairs; pairs: trained, held out."""
    written = read_json(checkpoint / SETTINGS)
    if not written:
        return ""
    if step != written["pairs_per_step"]:
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: was trained with steps of "
            f"{written['pairs_per_step']} pairs, not of {step}; set global_batch_size to that"
        )
    free, fixed = compare(checkpoint, config, world_size)
    if fixed:
        raise UserError(_refusal(checkpoint, fixed))
    said = [f"with changed settings: {', '.join(free)}"] if free else []
    train, valid = pairs
    assert train is not None
    said += [other] if (other := check_data(checkpoint, config, train, valid)) else []
    return f"going on from {checkpoint} {'; '.join(said)}" if said else ""


def _may(name: str, best: bool) -> bool:
    """Whether a setting may change on the way. best: of a run that compares its evaluations."""
    plain, _, argument = name.partition(".")
    if argument:
        return argument.startswith(FREE_ARGUMENTS)
    return plain in (*FREE, *FILES, *CUT) or (plain in JUDGED and not best)


def keeps_score(config: ORPOConfig) -> bool:
    """Whether evaluations from before and after are compared, for a best model or an early stop."""
    return config.keeps_best or config.early_stopping_patience is not None


def keep_step(pairs: int, config: ORPOConfig, where: str) -> ORPOConfig:
    """The config with optimizer steps of ``pairs`` pairs, as before, on any number of processes.

    Raises ``UserError`` where another step was asked for.
    """
    if config.global_batch_size not in (None, pairs):
        raise UserError(
            f"{where}: was trained with steps of {pairs} pairs, not with global_batch_size "
            f"{config.global_batch_size}; leave it out"
        )
    return config.replace(global_batch_size=pairs)


def check_data(
    checkpoint: Path, config: ORPOConfig, train: PairDataset, valid: PairDataset | None
) -> str:
    """What is to be said of other evaluation data; ``UserError`` for other training data."""
    written = read_json(checkpoint / SETTINGS)
    if not written:
        return ""
    changed = {}
    for name, now in data_of(config, train, valid).items():
        before, after = (f"{one['pairs'] if one else 'no'} pairs" for one in (written[name], now))
        if written[name] != now:
            after = after if before != after else "as many that are others"
            changed[name] = f"{name} data {before} → {after}"
    if "train" in changed or (changed and keeps_score(config)):
        raise UserError(_refusal(checkpoint, [*changed.values()]))
    return changed.get("valid", "")


def _changed(
    written: Mapping[str, Any], config: ORPOConfig, without: tuple[str, ...] = ()
) -> Changed:
    """Old and new value of every setting that is neither as it was given then nor as it was then.

    A setting that the checkpoint does not know had its default.
    """
    asked, resolved, found = written["asked"], written["resolved"], Changed()
    for name, value in config.model_dump().items():
        default = ORPOConfig.model_fields[name].get_default(call_default_factory=True)
        old = asked.get(name, default)
        if name in (*PLACES, *without) or value in (old, resolved.get(name, default)):
            continue
        if name == "trainer_args":
            found |= {
                f"{name}.{key}": (old.get(key), value.get(key))
                for key in {**old, **value}
                if old.get(key) != value.get(key)
            }
        elif name != "model" and _plain(name, value) != _plain(name, old):
            found[name] = (old, value)
    if "model" not in without and _is_other_model(written, config.model):
        found["model"] = (asked["model"], config.model)
    return found


def _is_other_model(written: Mapping[str, Any], model: str | None) -> bool:
    """By the files where they are here, which may have moved or changed, else by the name."""
    files = fingerprint(model)
    if files and written["model"]:
        return files != written["model"]
    return model not in (written["asked"]["model"], written["resolved"]["model"])


def _plain(name: str, value: Any) -> Any:
    """A setting's value, by one of the names that mean the same."""
    if name == "metric_for_best_model":
        return (value or "loss").removeprefix("eval/").removeprefix("eval_")
    if name == "optimizer":  # fused, paged: the same numbers, computed at once or kept elsewhere
        plain = (value or "adamw_torch").removesuffix("_fused").removeprefix("paged_")
        return plain.replace("adamw_bnb_8bit", "adamw_8bit")
    return value


def _refusal(checkpoint: Path, changed: list[str]) -> str:
    return (
        f"resume_from_checkpoint {checkpoint}: goes on as it began, so these cannot change: "
        f"{', '.join(changed)}; set them back, or start anew, with --overwrite or under another "
        f"--project-name (there from its weights with --model {checkpoint})"
    )


def _show(old: Any, new: Any) -> str:
    before, after = (_short(value) for value in (old, new))
    return f"{before} → {after}" if before != after else f"{before} (has another content)"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value)) or "none"
    if value is None or isinstance(value, bool):
        return "default" if value is None else str(value).lower()
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"
