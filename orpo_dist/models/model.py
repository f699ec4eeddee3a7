"""The policy: tokenizer, weights, quantisation and adapters, ready to train or to answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from orpo_dist.base.device import computes_bf16, mention_emulated_bf16
from orpo_dist.base.outage import is_outage
from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.data.bounds import rows_of
from orpo_dist.engines.engine import SINGLE, Engine
from orpo_dist.models.adapters import FILE as ADAPTER
from orpo_dist.models.adapters import add_adapter, base_of, hold_in, is_adapter, lora_config
from orpo_dist.models.answering import mended_file, own_settings
from orpo_dist.models.kinds import embedding_rows, refuse_checkpointing, refuse_not_causal
from orpo_dist.models.quantisation import quantization_config
from orpo_dist.models.randomness import quiet
from orpo_dist.models.targets import reached
from orpo_dist.models.towers import say_frozen
from orpo_dist.upstream import check
from orpo_dist.upstream.bitsandbytes import keep_trainable
from orpo_dist.upstream.hf_models import whole_weights

logger = logging.getLogger("orpo_dist")

# Of a model: its tokenizer, its config, and the rows of its embedding (None: not known).
Known = tuple[Any, Any, int | None]


def resolve_precision(config: ORPOConfig) -> str:
    """``mixed_precision`` with the default filled in for this machine."""
    if config.mixed_precision == "bf16":
        mention_emulated_bf16()
    if config.mixed_precision is not None:
        return config.mixed_precision
    if not torch.cuda.is_available():
        return "none"
    return "bf16" if computes_bf16() else "fp16"


def locate(model: str) -> str:
    """The absolute path of a local model, so that saved adapters find their base; hub ids as is."""
    path = Path(model).expanduser()
    if path.is_dir():
        if any((path / name).exists() for name in ("config.json", ADAPTER)):
            return str(path.resolve())
        more = " but GGUF files" * any(path.glob("*.gguf"))
        raise UserError(f"model {model}: the folder holds no config.json{more}; name another")
    if path.is_file():
        raise UserError(f"model {model}: is a file; name the folder of a model of transformers")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"model {model}: no such folder")
    return model


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit that a model of the hub stands at here; None for a folder."""
    from transformers.utils import cached_file, extract_commit_hash

    for name in ("config.json", ADAPTER):
        with contextlib.suppress(OSError):  # not there
            return extract_commit_hash(cached_file(model, name, revision=revision), None)
    return None


def load_tokenizer(model: str, config: ORPOConfig) -> Any:
    """The model's tokenizer, with a padding token (the end token, if it has none of its own).

    An adapter that was saved without one has that of its base.
    """
    from transformers import AutoTokenizer

    own = not is_adapter(model) or (Path(model).expanduser() / "tokenizer_config.json").exists()
    with _loading("tokenizer of model", model):
        tokenizer = AutoTokenizer.from_pretrained(
            **_source(model, config) if own else _base_source(model, config)
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks go by position, so sharing is harmless
    return tokenizer


def load_model_config(model: str, config: ORPOConfig) -> Any:
    """A model's config.json alone, for what must be known before any weight is loaded.

    Of an adapter it is that of its base. ``UserError`` if the model is no causal language model.
    """
    from transformers import AutoConfig

    with _loading("config of model", model):
        found = AutoConfig.from_pretrained(**_base_source(model, config))
    refuse_not_causal(found, f"model {model}")
    return found


def _source(model: str, config: ORPOConfig) -> dict[str, Any]:
    """Where transformers finds the files of a model."""
    return {
        "pretrained_model_name_or_path": locate(model),
        "revision": config.model_revision,
        "trust_remote_code": config.trust_remote_code,
    }


def _base_source(model: str, config: ORPOConfig) -> dict[str, Any]:
    """The same of a whole model, or of the base of an adapter."""
    if not is_adapter(model):
        return _source(model, config)
    base, revision = base_of(model)
    return _source(base, config) | {"revision": revision or config.model_revision}


def look_at(model: Any, config: ORPOConfig, tokenizer: Any = None) -> Known:
    """What is known of a model before its weights are: tokenizer, config, rows of the embedding.

    model: as in ``make_policy``. Raises ``UserError``.
    """
    if model is None or isinstance(model, str):
        name = _named(model, config)
        found = load_model_config(name, config)
        return tokenizer or load_tokenizer(name, config), found, rows_of(found)
    refuse_not_causal(model.config, f"model {type(model).__name__}")
    tokenizer = tokenizer or load_tokenizer(model.config.name_or_path, config)
    return tokenizer, model.config, embedding_rows(model)


def _named(model: str | None, config: ORPOConfig) -> str:
    name = model or config.model
    if name is None:
        raise UserError("model is missing: pass model=... or ORPOConfig(model=...)")
    return name


def make_policy(
    model: Any, config: ORPOConfig, peft_config: Any = None, engine: Engine = SINGLE
) -> Any:
    """The policy in its adapter, free of randomness.

    model: a model of transformers, or the name of one to load (default: the config's). engine: the
    one that will hold it. Raises ``UserError``.
    """
    if model is None or isinstance(model, str):
        config = config.replace(model=_named(model, config))
        model = load_policy(config, engine)
    if config.gradient_checkpointing not in (False, "auto"):
        refuse_checkpointing(_core(model))
    if off := quiet(model):
        logger.info(
            "switched off in the base model, so that both answers of a pair meet the same network: "
            "%s", off,
        )  # fmt: skip
    policy = _with_adapter(model, config, peft_config)
    hold_in(policy, config.lora_dtype)
    say_frozen(_core(policy))
    return policy


def _core(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _with_adapter(policy: Any, config: ORPOConfig, peft_config: Any) -> Any:
    """The policy in the adapter that was asked for, by ``peft_config`` or by the config."""
    adapted = hasattr(policy, "get_base_model")
    if peft_config is not None and adapted:
        raise UserError("peft_config: the model has an adapter already; leave one of them out")
    if config.quantization and not getattr(policy, "is_quantized", False):
        raise UserError("quantization: happens on loading; pass the model by name, or quantised")
    if peft_config is None and config.peft and not adapted:
        peft_config = lora_config(config)
    return policy if peft_config is None else _adapted(policy, peft_config)


def load_policy(config: ORPOConfig, engine: Engine = SINGLE) -> Any:
    """The model to train: base weights, frozen and wrapped in an adapter where ``peft`` is on.

    Full training keeps fp32 weights (autocast computes in ``mixed_precision``); a frozen base is
    held in the compute precision itself.
    """
    assert config.model is not None
    precision = resolve_precision(config)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": torch.float32}[precision]
    model = load_weights(
        config.model,
        config,
        dtype=half if config.peft else torch.float32,
        quantization=quantization_config(config, half, engine),
    )
    if is_adapter(config.model):
        return _in_adapter(model, config.model, is_trainable=True)
    if not config.peft:
        return model
    torch.manual_seed(config.seed)  # loading draws random numbers on some engines, not on others
    return _adapted(model, lora_config(config))


def _adapted(model: Any, peft_config: Any) -> Any:
    """A model in a fresh adapter, of which a line says what it reaches."""
    policy = add_adapter(model, peft_config)
    logger.info("adapter: %s", reached(policy, peft_config))
    return policy


def _in_adapter(base: Any, folder: str | Path, **options: Any) -> Any:
    """The base in the adapter that lies in a folder, answering by the settings beside it."""
    check("peft")
    from peft import PeftModel

    base.generation_config = own_settings(folder) or base.generation_config
    path = str(Path(folder).expanduser().resolve())
    with _loading("adapter", str(folder)):
        return PeftModel.from_pretrained(base, path, **options)


def load_weights(
    model: str, config: ORPOConfig, dtype: torch.dtype, quantization: Any = None
) -> Any:
    """``AutoModelForCausalLM`` from a folder or the hub; ``UserError`` if that is not one.

    Of an adapter, its base alone.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    # ZeRO-3 places weights itself; everyone else must have quantised ones on the device at once.
    placed = quantization is not None and not is_deepspeed_zero3_enabled()
    placement = {"device_map": {"": local_device()}} if placed else {}
    check("hf_models", "torch")
    load_model_config(model, config)  # refuses what is no causal model, before reading weights
    source = _base_source(model, config)
    with _loading("model", model):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=dtype,
            quantization_config=quantization,
            generation_config=mended_file(
                source["pretrained_model_name_or_path"], source["revision"]
            ),
            output_loading_info=True,
            **placement,
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {model}: its weights lack {len(missing)} tensors that its config.json asks "
            f"for, first {missing[0]}; they would be random"
        )
    keep_trainable(loaded)
    return loaded


@contextlib.contextmanager
def _loading(what: str, model: str) -> Iterator[None]:
    """One sentence for whatever a broken or foreign folder makes the libraries raise."""
    try:
        yield
    except (UserError, TemporaryFailure, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = reason_of(error)
        if is_outage(error):
            raise TemporaryFailure(f"{what} {model}: cannot be loaded now ({reason})") from error
        raise UserError(f"{what} {model}: cannot be loaded ({reason})") from error


def local_device() -> str | int:
    """Where this process computes."""
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def load_trained(path: str | Path, config: ORPOConfig, device: str | int | None = None) -> Any:
    """A model for use, not for training: a run folder, an adapter folder or any base model.

    In the config's precision and, where it says so, quantised. device: default, where this process
    computes; quantised weights are always there.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve_precision(config))
    dtype = half or torch.float32
    quantization = quantization_config(config, dtype, SINGLE)  # no engine cuts it
    model = load_weights(str(path), config, dtype, quantization)
    if is_adapter(path):
        model = _in_adapter(model, path)
    if quantization is None:
        model = model.to(local_device() if device is None else device)
    return model.eval()


def merged_model(adapter: Path, config: ORPOConfig) -> Any:
    """The plain model, on the CPU, with a saved adapter added to its weights.

    The base is loaded anew, whole and in full, so that neither shards nor rounding get into it.
    """
    with whole_weights():
        base = load_weights(str(adapter), config, torch.float32)
    return _in_adapter(base, adapter, torch_device="cpu").merge_and_unload()
