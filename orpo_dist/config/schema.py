"""Every parameter of a run, once: its name, default, check and help text.

Flags, YAML keys, Python keywords and the documentation all come from this class.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from orpo_dist.base.types import UserError
from orpo_dist.config import schedules
from orpo_dist.config.checks import Contradictory, complaints, contradictions, stage_values
from orpo_dist.config.names import ALIASES

Strategy = Literal["no", "steps", "epoch"]
DataFormat = Literal[
    "auto", "pairs", "orca", "alpaca", "sharegpt", "ultrafeedback", "argilla", "hh", "ranked"
]

# Settings of TrainingArguments that this toolkit owns: setting them twice would be a contradiction.
OWNED_TRAINER_ARGS = {
    "seed": "seed",
    "max_steps": "max_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "logging_steps": "logging_steps",
    "eval_strategy": "eval_strategy",
    "eval_steps": "eval_steps",
    "save_strategy": "save_strategy",
    "save_steps": "save_steps",
    "save_total_limit": "save_total_limit",
    "load_best_model_at_end": "load_best_model_at_end",
    "metric_for_best_model": "metric_for_best_model",
    "greater_is_better": "metric_for_best_model",
    "gradient_checkpointing": "gradient_checkpointing",
    "remove_unused_columns": "nothing (it must stay off)",
    "deepspeed": "the preset of 'orpo-dist launch'",
    "fsdp": "the preset of 'orpo-dist launch'",
    "fsdp_config": "the preset of 'orpo-dist launch'",
    "accelerator_config": "the preset of 'orpo-dist launch'",
}


def setting(group: str, default: Any, description: str, **checks: Any) -> Any:
    """A config field with its help text and the heading it stands under in ``--help``."""
    return Field(default, description=description, json_schema_extra={"group": group}, **checks)


class ORPOConfig(BaseModel):
    """All settings of one ORPO run. Immutable; mistakes raise ``UserError``, all in one sentence."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        defer_build=True,  # until a config is made: --help makes none
    )

    # fmt: off
    # --- what is trained, on what, into which folder
    model: str | None = setting("run", None, "base model: a folder or a hub id")
    model_revision: str | None = setting("run", None, "branch, tag or commit of a hub model")
    trainer: Literal["orpo"] = setting("run", "orpo", "training method")
    project_name: str = setting("run", "orpo-run", "run folder: a name or a path", min_length=1)
    overwrite: bool = setting("run", False, "replace a run that is already in the run folder")
    resume_from_checkpoint: str = setting("run", "never", "auto (newest complete checkpoint of the run folder, or a fresh start) | a checkpoint folder | never")
    seed: int = setting("run", 42, "seed of data order and adapter initialisation", ge=0)
    trust_remote_code: bool = setting("run", False, "run Python code that ships with a hub model")

    # --- data
    data_path: list[str] = setting("data", [], "training data: files (JSON, JSONL, CSV, Parquet), folders or hub ids; several are mixed")
    valid_data_path: list[str] = setting("data", [], "evaluation data, same forms")
    data_weights: list[float] | None = setting("data", None, "one number per source of data_path: how often its rows appear in an epoch (0.5: a random half)")
    data_temperature: float | None = setting("data", None, "mix the sources of data_path by size ** (1 / temperature): 1 as they are, higher more alike; an epoch stays as long; instead of data_weights", gt=0)
    train_split: str = setting("data", "train", "split of hub ids and datasets folders to train on")
    valid_split: str | None = setting("data", None, "split of data_path to evaluate on, where valid_data_path is not given")
    prompt_text_column: str = setting("data", "prompt", "column of the prompt")
    text_column: str = setting("data", "chosen", "column of the preferred answer")
    rejected_text_column: str = setting("data", "rejected", "column of the answer to avoid")
    system_column: str | None = setting("data", None, "column of a system message that goes before the prompt")
    tools_column: str = setting("data", "tools", "column of the tools that the chat template describes to the model, where there is one")
    data_format: DataFormat = setting("data", "auto", "what the columns are called and mean: auto looks at the columns and says what it takes them for")
    implicit_prompt: bool = setting("data", False, "take what both answers begin with as the prompt, where plain texts have no prompt column")
    category_column: str = setting("data", "category", "column that groups pairs in evaluations, where there is one")
    strict_data: bool = setting("data", False, "fail on the first unusable row instead of skipping and counting")
    chat_template: str | None = setting("data", None, "a Jinja file or text to use as chat template; 'none' leaves plain strings as they are; default: the tokenizer's own")
    chat_template_kwargs: dict[str, Any] = setting("data", {}, "further arguments of the chat template, as a mapping, e.g. enable_thinking: false")
    max_prompt_length: int | None = setting("data", 128, "longest prompt in tokens, cut on the left", ge=1)
    max_completion_length: int | None = setting("data", None, "longest answer in tokens, each on its own, cut on the right", ge=2)
    max_seq_length: int | None = setting("data", None, "longest prompt + answer in tokens; default: the model's context", ge=4)
    overlong: Literal["truncate", "skip"] = setting("data", "truncate", "what to do with pairs over these lengths")

    # --- order of the data
    curriculum: Literal["difficulty", "length", "margin", "files"] | None = setting("curriculum", None, "begin with the easy pairs: by a difficulty column, by the tokens of both answers, by the margin under the base model (wide is easy; scored once), or file by file in the order of data_path; default: shuffled")
    difficulty_column: str = setting("curriculum", "difficulty", "column of numbers for curriculum difficulty, higher is harder")
    curriculum_epochs: int = setting("curriculum", 1, "how many first epochs go from easy to hard; later ones are shuffled", ge=1)
    curriculum_pacing: Literal["linear", "root", "steps"] = setting("curriculum", "linear", "how the pool that pairs are drawn from grows from its easiest share to all, over an epoch")
    curriculum_start: float = setting("curriculum", 0.0, "share of the pairs in the pool at the start, and at each step of pacing steps; 0: strictly sorted", ge=0, le=1)

    # --- objective
    orpo_alpha: float = setting("objective", 1.0, "weight of the odds-ratio term (the paper's lambda, TRL's beta)", ge=0)
    orpo_alpha_schedule: str = setting("objective", "constant", "alpha over the run: constant | linear | cosine | warmup | ramp, which all end at orpo_alpha; or points progress:alpha, as in 0:0.1,0.5:1; or a Python function of progress, module:function")
    orpo_alpha_start: float = setting("objective", 0.0, "where the schedules linear, cosine and warmup begin", ge=0)
    orpo_alpha_warmup: float = setting("objective", 0.1, "share of the run that the schedule warmup takes", gt=0, le=1)
    loss_form: Literal["additive", "convex"] = setting("objective", "additive", "additive: L_SFT + alpha L_OR; convex: (1 - alpha) L_SFT + alpha L_OR")
    router_aux_loss_coef: float | None = setting("objective", None, "weight of the load-balancing loss of a mixture of experts, as transformers computes it, of each pair; default: none; 0: none, whatever the model's config says", ge=0)
    nll_scope: Literal["completion", "prompt_and_completion"] = setting("objective", "completion", "tokens of L_SFT: the chosen answer, or prompt and answer as in the paper's code and TRL")

    # --- optimisation
    epochs: float = setting("optimisation", 3, "passes over the data", gt=0)
    max_steps: int | None = setting("optimisation", None, "stop after this many optimizer steps; overrides epochs", ge=1)
    batch_size: int = setting("optimisation", 4, "pairs per device and micro-batch where no token budget decides (max_tokens_per_microbatch none, and auto on a CPU); else only a factor of the step: batch_size × gradient_accumulation pairs a process", ge=1)
    gradient_accumulation: int = setting("optimisation", 4, "micro-batches per optimizer step (more where the token budget asks for it)", ge=1)
    global_batch_size: int | None = setting("optimisation", None, "pairs per optimizer step over all processes, so that training stays the same on any number of them; overrides gradient_accumulation", ge=1)
    lr: float = setting("optimisation", 5e-5, "peak learning rate", gt=0)
    warmup_ratio: float = setting("optimisation", 0.1, "share of the steps that warm up", ge=0, lt=1)
    weight_decay: float = setting("optimisation", 0.01, "decoupled weight decay", ge=0)
    scheduler: str = setting("optimisation", "cosine", "learning-rate schedule, as transformers names it")
    optimizer: str = setting("optimisation", "adamw_torch", "optimizer, as transformers names it; adamw_torch: AdamW, in one fused kernel on a GPU; adamw_8bit (extra quant): its state in a quarter of the memory; paged_adamw_8bit: and on the host where a GPU is full")
    max_grad_norm: float = setting("optimisation", 1.0, "clip the gradient to this norm (0: off)", ge=0)
    max_bad_steps: int = setting("optimisation", 5, "steps in a row that may be skipped because their loss or gradient is no finite number; one more ends the run (0: the first one does)", ge=0)

    stages: list[dict[str, Any]] | None = setting("optimisation", None, "a list of stages, each a mapping of settings that differ there (data_path, lr, epochs, orpo_alpha, ...); each goes on from the weights of the last")

    # --- memory and precision
    mixed_precision: Literal["bf16", "fp16", "none"] | None = setting("memory", None, "default: bf16 where the GPU has it, fp16 on older GPUs, none on CPU")
    attention: Literal["auto", "packed", "padded"] = setting("memory", "auto", "packed: one sequence without padding, each prompt once; padded: the reference; auto: packed where the model proves it can")
    max_tokens_per_microbatch: int | Literal["auto"] | None = setting("memory", "auto", "fill micro-batches with up to so many tokens, whatever batch_size says (a longer pair stands alone); changes memory and speed, never the loss; auto: what fits, tried at the start on a GPU, planned where weights are sharded, 512 on a CPU; none: batch_size pairs")
    sequence_parallel: int | Literal["auto"] = setting("memory", 1, "processes that share each sequence, for pairs that do not fit on one: each holds an equal part of the tokens and attends with its share of the heads; auto: as many as the longest pair needs; the loss of a step stays, but batch_size counts pairs of such a group: set global_batch_size for steps that stay as large")
    kernels: Literal["auto", "liger", "compile", "none"] = setting("memory", "auto", "what computes the layers in training. liger: RMSNorm, rope and SwiGLU in Liger's kernels; compile: every layer through torch.compile; none: the model's own code; auto: liger on a GPU where it is installed and proves right, else none")
    gradient_checkpointing: bool | Literal["auto", "keep_attention"] | str = setting("memory", False, "recompute activations in the backward pass: less memory, and with true about a third slower; every:N: of one layer in N alone; keep_attention: of all layers, but not their attention; auto: the fastest of these that fits the GPU, false on a CPU")
    activation_offload: bool = setting("memory", False, "with gradient_checkpointing: what recomputed layers begin with waits in the host's memory instead of the GPU's")
    quantization: Literal["int4", "int8"] | None = setting("memory", None, "load the base model in NF4 or int8 (needs peft)")

    # --- adapters
    peft: bool = setting("adapter", False, "train a LoRA adapter instead of all weights")
    lora_r: int = setting("adapter", 16, "LoRA rank", ge=1)
    lora_alpha: int = setting("adapter", 32, "LoRA scale (update = alpha / r)", ge=1)
    lora_dropout: float = setting("adapter", 0.0, "dropout on the adapter's input", ge=0, lt=1)
    target_modules: str = setting("adapter", "all-linear", "all-linear, or a comma list of module names", min_length=1)
    lora_dtype: Literal["float32", "bfloat16"] = setting("adapter", "float32", "precision of the adapter's weights and of their optimizer state; bfloat16: less memory and fewer casts, but updates below 1/256 of a weight are lost (needs mixed_precision bf16)")
    use_dora: bool = setting("adapter", False, "DoRA: decompose weights into magnitude and direction")
    merge_adapter: bool = setting("adapter", False, "merge the adapter into the base model at the end")

    # --- evaluation, checkpoints, logs
    eval_strategy: Strategy | None = setting("schedule", None, "when to evaluate; default: epoch if there is evaluation data")
    eval_steps: int | None = setting("schedule", None, "steps between evaluations, with eval_strategy steps", ge=1)
    save_strategy: Strategy | None = setting("schedule", None, "when to save a checkpoint; default: as eval_strategy where the best model is kept, else epoch")
    save_steps: int | None = setting("schedule", None, "steps between checkpoints, with save_strategy steps", ge=1)
    save_total_limit: int | None = setting("schedule", 2, "checkpoints to keep (the best one is always kept)", ge=1)
    async_save: bool = setting("schedule", True, "train on while a checkpoint of 64 MiB or more goes to the disk and is checked; it counts from then on")
    logging_steps: int | None = setting("schedule", None, "steps between log lines; default: about 50 a run, at most 10 steps apart", ge=1)
    early_stopping_patience: int | None = setting("schedule", None, "stop after this many evaluations without improvement", ge=1)
    early_stopping_threshold: float = setting("schedule", 0.0, "smaller improvements do not count", ge=0)
    metric_for_best_model: str | None = setting("schedule", None, "evaluation metric that picks the best model; default: loss")
    load_best_model_at_end: bool | None = setting("schedule", None, "finish with the best model instead of the last; default: with early stopping")
    hang_timeout: float = setting("schedule", 540, "end the job, with the stacks of its ranks, where a step, its data or a batch of an evaluation takes so many seconds and three times the longest before (0: never)", ge=0)
    log: str = setting("schedule", "tensorboard", "tensorboard | none | wandb | mlflow | ... or a comma list")
    trainer_args: dict[str, Any] = setting("schedule", {}, "anything else for transformers' TrainingArguments, as a mapping")
    # fmt: on

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError("; ".join(complaints(type(self), values, error))) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, with our sentences."""
        return super().model_validate(obj, **options) if isinstance(obj, cls) else cls(**obj)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(f"a config is frozen: make another with config.replace({name}=...)")

    @field_validator("*", mode="before")
    @classmethod
    def _no_silent_coercion(cls, value: Any, info: Any) -> Any:
        """YAML reads ``no`` as False and pydantic reads True as 1: neither may slip through."""
        accepted = leaves(cls.model_fields[info.field_name].annotation)
        given = value if isinstance(value, list) else [value]
        booleans = [item for item in given if isinstance(item, bool)]
        if booleans and bool not in accepted and dict not in accepted:
            if value is False and accepted & {"no", "none"}:
                return "no" if "no" in accepted else "none"
            raise ValueError(f"expected a value, got {str(booleans[0]).lower()}")
        if info.field_name in ("data_path", "valid_data_path"):
            return [value] if isinstance(value, str) else value or []
        return value

    @field_validator("max_tokens_per_microbatch", mode="before")
    @classmethod
    def _token_budget(cls, value: Any) -> Any:
        return None if value in (None, "none") else _counted(value, "auto, none", "tokens")

    @field_validator("sequence_parallel", mode="before")
    @classmethod
    def _processes(cls, value: Any) -> Any:
        return _counted(value, "auto", "processes")

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _recomputed(cls, value: Any) -> Any:
        word = str(value).lower()
        if word in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            return word in ("true", "yes", "on", "1")
        step = word.removeprefix("every:")
        if step != word and step.isdecimal() and int(step) > 0:
            return f"every:{int(step)}" if int(step) > 1 else True
        if word not in ("auto", "keep_attention"):
            raise ValueError(f"must be true, false, auto, keep_attention or every:N, got {value!r}")
        return word

    @field_validator("orpo_alpha_schedule", mode="before")
    @classmethod
    def _points(cls, value: Any) -> Any:
        """YAML may write points as a list of pairs; they are kept as the text of the flag."""
        if isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value):
            return ",".join(f"{at}:{alpha}" for at, alpha in value)
        return value

    @field_validator("orpo_alpha_schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        schedules.check_kind(value)
        return value

    @field_validator("trainer_args")
    @classmethod
    def _no_contradictions(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = []
        for name in value:
            ours = ALIASES.get(name) or OWNED_TRAINER_ARGS.get(name)
            ours = ours or (name if name in cls.model_fields else None)
            if ours:
                found.append(f"'{name}' is set by {ours}, not under trainer_args")
        if found:
            raise ValueError("; ".join(found))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ORPOConfig:
        found = contradictions(self)
        found += stage_values(self.model_dump(), self.stages or [], ORPOConfig, found)[1]
        if found:
            raise Contradictory(found)
        return self

    def stage_configs(self) -> list[ORPOConfig]:
        """The settings of every stage, in order; without ``stages`` there is one: these."""
        if not self.stages:
            return [self]
        values, _ = stage_values(self.model_dump(), self.stages, ORPOConfig)
        return [ORPOConfig(**of_stage) for of_stage in values]

    @property
    def keeps_best(self) -> bool:
        """Whether the run ends with the best model instead of the last."""
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end

    @property
    def ranks_per_sequence(self) -> int:
        """Processes that share a sequence; 1 while ``auto`` is open."""
        return 1 if self.sequence_parallel == "auto" else self.sequence_parallel

    @property
    def pairs_per_rank_step(self) -> int:
        """Pairs that one process contributes to an optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def replace(self, **changes: Any) -> ORPOConfig:
        """A copy with ``changes``, checked like a new config."""
        return ORPOConfig(**{**self.model_dump(), **changes})


def _counted(value: Any, words: str, what: str) -> Any:
    """``auto``, or a number of something from 1 on."""
    if value == "auto":
        return value
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"must be {words} or a number of {what}, got {value!r}")
    return int(value)


def leaves(annotation: Any) -> set[Any]:
    """The types and literal values that an annotation is made of: ``Literal["a"] | None -> {"a", NoneType}``."""
    parts = get_args(annotation)
    if not parts:
        return {annotation}
    return set().union(*(leaves(part) for part in parts), {get_origin(annotation)})
