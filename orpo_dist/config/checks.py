"""Settings that cannot hold together, and what the stages of a run make of the run's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orpo_dist.config import schedules
from orpo_dist.config.names import explain_unknown, meant, sentence

if TYPE_CHECKING:
    from orpo_dist.config.schema import ORPOConfig

# A stage goes on with the model of the last one, in the same folder: these hold for a whole run.
WHOLE_RUN = (
    "model", "model_revision", "trainer", "project_name", "overwrite", "resume_from_checkpoint",
    "trust_remote_code", "chat_template", "chat_template_kwargs", "log", "stages", "quantization",
    "hang_timeout", "async_save",
    "mixed_precision", "sequence_parallel", "peft", "lora_r", "lora_alpha", "lora_dropout",
    "target_modules", "use_dora", "lora_dtype", "merge_adapter",
)  # fmt: skip


class Contradictory(ValueError):
    """Settings that cannot hold together; one sentence for each trouble."""

    def __init__(self, sentences: list[str]):
        super().__init__("; ".join(sentences))
        self.sentences = sentences


def problems(
    schema: type[ORPOConfig], values: Mapping[str, Any], doubtful: Set[str] = frozenset()
) -> list[str]:
    """Everything that is wrong with ``values``; empty when all is well. doubtful: as below."""
    try:
        schema.__pydantic_validator__.validate_python(
            dict(values), self_instance=schema.__new__(schema)
        )
    except ValidationError as error:
        return complaints(schema, values, error, doubtful)
    return []


def complaints(
    schema: type[ORPOConfig],
    values: Mapping[str, Any],
    error: ValidationError,
    doubtful: Set[str] = frozenset(),
) -> list[str]:
    """What is wrong with ``values``, of which pydantic has found ``error``: unknown names and bad
    values, and what the others say against each other.

    doubtful: settings whose value is not known, so that nothing is said against them.
    """
    found: list[str] = []
    bad: set[str] = set()
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            found.append(explain_unknown(name, schema.model_fields))
            bad |= {name, meant(name, schema.model_fields)}
        elif name:
            found.append(sentence(problem))
            bad.add(name)
        else:
            said = problem["ctx"]["error"].sentences
            found += [one for one in said if not doubtful & set(re.findall(r"\w+", one))]
    if not bad:
        return found
    doubtful = doubtful | bad
    rest = {name: value for name, value in values.items() if name not in doubtful}
    stages = rest.pop("stages", None) or []
    found += problems(schema, rest, doubtful)
    return found + stage_values(rest, stages, schema, found, doubtful)[1]


def stage_values(
    run: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    schema: type[ORPOConfig],
    known: Sequence[str] = (),
    doubtful: Set[str] = frozenset(),
) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of every stage: the run's, with the stage's in their place; and what is wrong
    with them, as sentences that name the stage. known: what was said of the run already.
    """
    found: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, overrides in enumerate(stages, start=1):
        whole = [str(name) for name in overrides if name in WHOLE_RUN]
        own = {str(name): value for name, value in overrides.items() if name not in whole}
        values = {**run, **own, "stages": None}
        sentences = [f"{name} is one for the whole run" for name in whole]
        sentences += [one for one in problems(schema, values, doubtful) if one not in known]
        if sentences:
            wrong.append(f"stage {number}: {'; '.join(sentences)}")
        found.append(values)
    return found, wrong


def contradictions(config: ORPOConfig) -> list[str]:
    """Sentences on settings that cannot hold together (empty when all is well)."""
    found = []
    alphas = schedules.values(
        config.orpo_alpha_schedule, config.orpo_alpha, config.orpo_alpha_start
    )
    if config.loss_form == "convex" and max(alphas, default=0) > 1:
        found.append(
            f"orpo_alpha is {max(alphas):g}, but loss_form convex needs 0 <= orpo_alpha <= 1"
        )
    if config.quantization and not config.peft:
        found.append(
            f"quantization {config.quantization} freezes the base model: add peft (--peft)"
        )
    if config.activation_offload and not config.gradient_checkpointing:
        found.append(
            "activation_offload moves what recomputed layers begin with: set "
            "gradient_checkpointing (true, every:N, keep_attention or auto)"
        )
    if config.use_dora and not config.peft:
        found.append("use_dora needs peft (--peft)")
    if config.lora_dtype != "float32" and not config.peft:
        found.append(f"lora_dtype {config.lora_dtype} needs peft (--peft)")
    if config.merge_adapter and not config.peft:
        found.append("merge_adapter needs peft (--peft)")
    if config.max_seq_length and (config.max_prompt_length or 0) > config.max_seq_length - 2:
        found.append(
            f"max_prompt_length {config.max_prompt_length} leaves no room for an answer within "
            f"max_seq_length {config.max_seq_length}"
        )
    if config.sequence_parallel != 1 and config.attention == "padded":
        found.append(
            f"sequence_parallel {config.sequence_parallel} shares packed sequences, of which "
            "attention padded has none: choose one"
        )
    if config.overwrite and config.resume_from_checkpoint == "auto":
        found.append("overwrite starts anew and resume_from_checkpoint auto goes on: choose one")
    if config.eval_strategy == "steps" and config.eval_steps is None:
        found.append("eval_strategy steps needs eval_steps")
    if config.save_strategy == "steps" and config.save_steps is None and not config.keeps_best:
        found.append("save_strategy steps needs save_steps")
    return found + _data_contradictions(config)


def _data_contradictions(config: ORPOConfig) -> list[str]:
    """The same for what is trained on, and in which order."""
    found = []
    if config.data_weights is not None and len(config.data_weights) != len(config.data_path):
        found.append(
            f"data_weights has {len(config.data_weights)} numbers for "
            f"{len(config.data_path)} sources in data_path"
        )
    if config.data_weights is not None and min(config.data_weights, default=1) <= 0:
        found.append("data_weights must all be above 0")
    if config.curriculum_pacing == "steps" and not config.curriculum_start:
        found.append("curriculum_pacing steps needs curriculum_start, the share of a step")
    if config.curriculum == "files" and len(config.data_path) == 1:
        found.append("curriculum files needs several files in data_path, the easiest first")
    if config.data_temperature is not None and config.data_weights is not None:
        found.append("data_temperature and data_weights both weigh the sources: choose one")
    if config.data_temperature is not None and len(config.data_path) == 1:
        found.append("data_temperature needs several sources in data_path")
    return found
