"""Settings that cannot hold together, and what the stages of a run make of the run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orpo_dist import schedules
from orpo_dist.config.names import explain_unknown, sentence

if TYPE_CHECKING:
    from orpo_dist.config.schema import ORPOConfig

# A stage goes on with the model of the last one, in the same folder: these hold for a whole run.
WHOLE_RUN = (
    "model", "model_revision", "trainer", "project_name", "overwrite", "resume_from_checkpoint",
    "trust_remote_code", "chat_template", "chat_template_kwargs", "log", "stages", "quantization",
    "mixed_precision", "peft", "lora_r", "lora_alpha", "lora_dropout", "target_modules", "use_dora",
    "merge_adapter",
)  # fmt: skip


def stage_values(
    run: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], schema: type[ORPOConfig]
) -> list[dict[str, Any]]:
    """The settings of every stage: the run's, with the stage's in their place, checked.

    Raises ``ValueError`` that names the stage.
    """
    found = []
    for number, overrides in enumerate(stages, start=1):
        for name in overrides:
            if name in WHOLE_RUN:
                raise ValueError(f"stage {number}: {name} is one for the whole run")
            if name not in schema.model_fields:
                raise ValueError(f"stage {number}: {explain_unknown(name, schema.model_fields)}")
        values = {**run, **overrides, "stages": None}
        try:
            schema(**values)
        except ValidationError as error:
            sentences = "; ".join(sentence(problem) for problem in error.errors())
            raise ValueError(f"stage {number}: {sentences}") from error
        found.append(values)
    return found


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
    if config.use_dora and not config.peft:
        found.append("use_dora needs peft (--peft)")
    if config.merge_adapter and not config.peft:
        found.append("merge_adapter needs peft (--peft)")
    if config.max_seq_length and (config.max_prompt_length or 0) > config.max_seq_length - 2:
        found.append(
            f"max_prompt_length {config.max_prompt_length} leaves no room for an answer within "
            f"max_seq_length {config.max_seq_length}"
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
