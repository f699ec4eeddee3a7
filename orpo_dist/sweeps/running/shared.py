"""What all trials share, made once by the driver: base models, tokenised data; and what is refused.

Trials find tokenised pairs in the cache by their content, and models in the hub's own cache.
"""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from orpo_dist.base.console import quieten_libraries
from orpo_dist.base.outage import is_outage
from orpo_dist.base.types import TemporaryFailure, UserError, noted, refuse
from orpo_dist.config import ORPOConfig
from orpo_dist.data import held_out_paths, template_text
from orpo_dist.engines.compatibility import refuse_impossible
from orpo_dist.launch import presets
from orpo_dist.models.adapters import base_of, is_adapter
from orpo_dist.sweeps.searched.config import NAMES, SweepConfig
from orpo_dist.training.arguments import resolve
from orpo_dist.training.stage import load_data, load_encoder

logger = logging.getLogger("orpo_dist")

# Settings on which tokenised data depend, the model's tokenizer among them.
DATA = (
    "model", "model_revision", "data_path", "valid_data_path", "train_split", "valid_split",
    "prompt_text_column", "text_column", "rejected_text_column", "category_column", "strict_data",
    "chat_template", "max_prompt_length", "max_completion_length", "max_seq_length", "overlong",
)  # fmt: skip
WEIGHTS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def refuse_unknown(sweep: SweepConfig) -> None:
    """``UserError`` for names that ``train`` would refuse, all at once: in the base, and every one
    of the space, whether a trial draws it or not. It needs neither the model nor the data.
    """
    tried = [("base", {name: value}) for name, value in sweep.base.items()]
    tried += [("space", setting) for setting in sweep.search_space.extremes()]
    tried = [(where, setting) for where, setting in tried if setting.keys() & set(NAMES)]
    if not tried:
        return
    found: list[str] = []
    for where, setting in tried:
        said: list[str] = []
        with noted(said):
            config = ORPOConfig().model_copy(update=setting)
            resolve(config, has_eval=True, world_size=sweep.workers_per_trial)
        found += [f"{where}: {sentence}" for sentence in said]
    refuse(found)


def refuse_unfit(sweep: SweepConfig) -> None:
    """``UserError`` for a point that no trial could train, before any of them starts."""
    refuse_unknown(sweep)
    for point in sweep.points:
        config = sweep.run_config(point, "trial")
        if config.model is None:
            raise UserError(
                "model is missing: pass --model (a folder or a hub id), or set it in base"
            )
        if not config.data_path:
            raise UserError("data_path is missing: pass --data-path, or set it in base")
        if config.stages:
            raise UserError("stages: the trials of a sweep have none; sweep one stage at a time")
        if not held_out_paths(config)[0]:
            raise UserError(
                "a sweep compares trials by held-out data: pass --valid-data-path or --valid-split"
            )
        refuse_impossible(config, presets.find(sweep.engine_of(point)).engine)
        resolve(config, True, sweep.workers_per_trial)


def prepare_shared(sweep: SweepConfig) -> None:
    """Fetch every base model and tokenise every reading of the data that the points ask for.

    Where a searcher proposes points, these are only those of a sample: a trial that reads data in
    yet another way tokenises them itself.
    """
    quieten_libraries()
    seen = set()
    for point in sweep.points:
        config = sweep.run_config(point, "trial")
        reading = tuple(str(getattr(config, name)) for name in DATA)
        if reading in seen:
            continue
        seen.add(reading)
        config = config.replace(chat_template=template_text(config.chat_template))
        assert config.model is not None
        fetch_model(config)
        train, valid = load_data(config, load_encoder(config.model, config)[1])
        assert valid is not None
        logger.info("%s: %d pairs, %d held out", config.model, len(train), len(valid))


def fetch_model(config: ORPOConfig) -> None:
    """Bring a hub model into the cache, so that trials do not all ask for it at once."""
    assert config.model is not None
    model, revision = config.model, config.model_revision
    if is_adapter(model):
        model, revision = base_of(model)
    if Path(model).expanduser().is_dir():
        return
    try:
        snapshot_download(model, revision=revision, allow_patterns=WEIGHTS)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if is_outage(error):
            raise TemporaryFailure(f"model {model}: cannot be fetched now ({reason})") from error
        raise UserError(f"model {model}: cannot be fetched ({reason})") from error
