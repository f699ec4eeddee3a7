"""LoRA adapters: fresh ones, and those that lie in a folder and are trained on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orpo_dist.base.console import count
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.models.targets import fitted
from orpo_dist.runs.folder import read_json
from orpo_dist.upstream import check

logger = logging.getLogger("orpo_dist")

FILE = "adapter_config.json"


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds an adapter, and not the weights of a whole model."""
    return (Path(model).expanduser() / FILE).exists()


def base_of(folder: str | Path) -> tuple[str, str | None]:
    """What the adapter in a folder was trained on: a folder or a hub id, and its revision.

    Raises ``UserError`` if that is not said, or not there any more.
    """
    settings = read_json(Path(folder).expanduser() / FILE)
    base = settings.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"model {folder}: its {FILE} does not say in base_model_name_or_path what it was "
            "trained on"
        )
    path = Path(base).expanduser()
    if (path.is_absolute() or base.startswith(".")) and not path.is_dir():
        raise UserError(
            f"model {folder}: is an adapter of {base}, which is not there; put that model back, or "
            f"name its new place in {FILE} as base_model_name_or_path"
        )
    return base, settings.get("revision")


def going_on(config: ORPOConfig, model: str | None = None) -> ORPOConfig:
    """The config to train a model with; where that is an adapter, it is trained on.

    Then ``peft`` is on and the settings of the adapter are those that it has. Raises ``UserError``
    where the config asks for others; a default asks for nothing. model: default, the config's.
    """
    model = model or config.model
    if model is None or not is_adapter(model):
        return config
    found = read_json(Path(model).expanduser() / FILE)
    if found.get("peft_type") != "LORA":
        raise UserError(
            f"model {model}: holds an adapter of the kind {found.get('peft_type')}; only LoRA "
            "adapters can be trained on"
        )
    own = _settings(found)
    for name, value in own.items():
        asked = getattr(config, name)
        same = _names(asked) == _names(value) if name == "target_modules" else asked == value
        if not same and asked != ORPOConfig.model_fields[name].default:
            raise UserError(
                f"{name} {asked}: the adapter in {model} has {value}, and training goes on with "
                f"that adapter; leave {name} out, or merge the adapter into its base first "
                f"(orpo-dist ensemble soup NEW-FOLDER {model}) and train that"
            )
    return config.replace(peft=True, **own)


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """The settings of a saved adapter by their names here."""
    own = {name: found[name] for name in ("lora_alpha", "lora_dropout")}
    own |= {"lora_r": found["r"], "use_dora": found.get("use_dora", False)}
    if isinstance(found["target_modules"], list):  # and not a pattern
        own["target_modules"] = ",".join(sorted(_names(",".join(found["target_modules"]))))
    return own


def _names(targets: str) -> set[str]:
    """Of modules, whatever layer they are in."""
    return {name.strip().rpartition(".")[2] for name in targets.split(",")}


def say_going_on(config: ORPOConfig, quantization: str | None) -> None:
    """One line on the adapter that training goes on with, if it does.

    quantization: of the base that it was trained on so far.
    """
    assert config.model is not None
    if not is_adapter(config.model):
        return
    base = Path(base_of(config.model)[0]).name
    logger.info(
        "model %s: a LoRA adapter (rank %d) on %s; training goes on with it. To train all weights, "
        "merge it first: orpo-dist ensemble soup NEW-FOLDER %s",
        config.model, config.lora_r, base, config.model,
    )  # fmt: skip
    if quantization and config.quantization != quantization:
        logger.warning(
            "model %s: was trained on a base in %s, and goes on on one in %s; --quantization %s "
            "has the same base as before", config.model, quantization,
            config.quantization or "full precision", quantization,
        )  # fmt: skip


def hold_in(policy: Any, dtype: str) -> None:
    """Keep the weights of adapters in a precision, by torch's name; float32 is PEFT's own choice.

    In bfloat16 adapters compute as the base does under autocast, without a cast of every input.
    """
    if dtype == "float32":
        return
    held = [p for name, p in policy.named_parameters() if p.requires_grad and "lora_" in name]
    for parameter in held:
        parameter.data = parameter.data.to(getattr(torch, dtype))
    logger.info(
        "lora_dtype %s: %s weights of the adapter, their gradients and their optimizer's state; an "
        "update below 1/256 of a weight is lost", dtype, count(sum(p.numel() for p in held)),
    )  # fmt: skip


def complete_adapter(folder: Path, model: Any) -> None:
    """Give an adapter that PEFT has saved what plain transformers needs to answer as in training.

    Its generation settings; and DoRA's magnitudes by the names that transformers looks for (5.23
    takes ``lora_magnitude_vector`` for a module, and drops the tensor of that name). PEFT knows
    both names.
    """
    settings = getattr(model.get_base_model(), "generation_config", None)
    if settings is not None:
        settings.save_pretrained(folder)
    if getattr(model.active_peft_config, "use_dora", False):  # other kinds have no such setting
        _rename_magnitudes(folder / "adapter_model.safetensors")


def _rename_magnitudes(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: tensor
        for name, tensor in load_file(file).items()
    }
    scratch = file.with_name(f".{file.name}")
    save_file(tensors, scratch, metadata={"format": "pt"})
    scratch.replace(file)


def lora_config(config: ORPOConfig) -> Any:
    """The PEFT configuration that the adapter settings describe."""
    from peft import LoraConfig

    targets = [name.strip() for name in config.target_modules.split(",") if name.strip()]
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_dora=config.use_dora,
        revision=config.model_revision,  # of the base, for whoever loads the adapter
        task_type="CAUSAL_LM",
    )


def add_adapter(model: Any, peft_config: Any) -> Any:
    """Wrap a model in a fresh adapter; only the adapter will train.

    Raises ``UserError`` where that cannot be put on what was asked for (``targets``).

    A quantised base gets no ``prepare_model_for_kbit_training``: PEFT freezes it anyhow, gradient
    checkpointing here is not the reentrant kind that needs gradients of inputs, and what is left of
    it casts embeddings, norms and head to fp32.
    """
    check("peft")
    from peft import get_peft_model

    peft_config = fitted(model, peft_config)
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        names = sorted({
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        })  # fmt: skip
        raise UserError(
            f"target_modules {peft_config.target_modules}: not in this model; its linear layers "
            f"are {', '.join(names)}"
        ) from error
