"""``TrainedModel``: a finished run (or any causal language model) ready to answer and to score."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch

from orpo_dist.base.types import Pair, UserError
from orpo_dist.config import ORPOConfig, load_config, require_config
from orpo_dist.data import Limits, bounds, make_encoder
from orpo_dist.data.bounds import check_ids, require_end
from orpo_dist.data.messages import Message
from orpo_dist.data.reasons import Unusable
from orpo_dist.models.kinds import embedding_rows
from orpo_dist.models.model import Known, load_tokenizer, load_trained, local_device, locate
from orpo_dist.models.quantisation import why_not_quantised
from orpo_dist.runs.folder import RunFolder, read_json
from orpo_dist.runs.lineage import ASIDE, STAGE
from orpo_dist.scoring.padding import pad_pairs, padded_scores

logger = logging.getLogger("orpo_dist")

Prompt = str | list[Message]

# Settings of how a model's weights are loaded.
LOADING = ("mixed_precision", "quantization", "peft", "merge_adapter")

# What a model's generation_config.json must not decide: ``generate`` returns one text per prompt.
SHAPE = {"num_return_sequences": 1, "return_dict_in_generate": False}


@dataclass
class TrainedModel:
    """model and tokenizer of transformers, the run's final metrics, and its folder."""

    model: Any
    tokenizer: Any
    config: ORPOConfig
    path: Path
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = embedding_rows(self.model)
        self.encoder = make_encoder(self.tokenizer, self.config, Limits(rows=self.rows))

    @property
    def known(self) -> Known:
        """As ``look_at`` has it."""
        return self.tokenizer, self.model.config, self.rows

    @torch.no_grad()
    def score(self, prompt: Prompt, completion: str) -> float:
        """Mean log-probability per token (nats) of ``completion`` and its end, given ``prompt``."""
        ids, answer = self.encode_answer(prompt, completion)
        if len(answer) < 2:
            raise UserError("completion: is empty")
        self.check_length(len(ids) + len(answer))
        self.model.eval()
        batch = pad_pairs([Pair(ids, answer, answer)]).to(self.model.device)
        return padded_scores(self.model, batch).chosen_logp.item()

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(
        self, prompt: list[Prompt], max_new_tokens: int = ..., **options: Any
    ) -> list[str]: ...

    @torch.no_grad()
    def generate(self, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Any:
        """Answer one prompt (text or messages) or a list of prompts, greedily by default.

        options: any of transformers' generation parameters, e.g. ``do_sample=True, top_p=0.9``.
        With ``num_return_sequences`` over 1 the answer is one list, a prompt's texts side by side.
        """
        if options.get("return_dict_in_generate"):
            raise UserError("return_dict_in_generate: answers are texts; use model.generate for it")
        single = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], dict))
        prompts = [prompt] if single else prompt
        if not prompts:
            return []
        rows = [self.prompt_ids(one) for one in prompts]
        width = max(map(len, rows))
        self.check_length(width + max_new_tokens)
        pad = self._pad_id()
        device = self.model.device
        stops = {self.encoder.end_id, self.tokenizer.eos_token_id}
        self.model.eval()
        with self._finite():
            output = self.model.generate(
                input_ids=torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device),
                attention_mask=torch.tensor(
                    [[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device
                ),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=sorted(stops),
                **{**SHAPE, "do_sample": False, "use_cache": True, **options},
            )
        texts = self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        lead = self.encoder.template.lead
        if lead.isspace() and (self.encoder.wraps_strings or not isinstance(prompts[0], str)):
            texts = [text.removeprefix(lead) for text in texts]  # the template's, not the answer's
        return texts[0] if single and len(texts) == 1 else texts

    def encode_answer(self, prompt: Prompt, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of prompt and answer, its end included; ``UserError`` as ``prompt_ids``."""
        with self._readable():
            ids, answer_ids = self.encoder.encode_answer(prompt, answer)
        self.check_ids([*ids, *answer_ids])
        return ids, answer_ids

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What generation starts from; ``UserError`` if the chat template refuses the messages."""
        with self._readable():
            ids = self.encoder.prompt_ids(prompt)
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ``UserError`` if one of the token ids is beyond the model's embedding."""
        check_ids(ids, self.tokenizer, self.rows, f"model {self.path}")

    def _pad_id(self) -> int:
        """What fills up prompts: masked, and still looked up, so it must be in the embedding."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.encoder.end_id)
        return next((i for i in known if i is not None and i < (self.rows or i + 1)), 0)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Unusable as unusable:
            raise UserError(f"model {self.path}: {unusable.sentence}") from unusable

    @contextlib.contextmanager
    def _finite(self) -> Iterator[None]:
        """One sentence for what torch says when it shall draw from NaN."""
        try:
            yield
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise UserError(f"model {self.path}: its weights or logits are not finite") from error

    def check_length(self, tokens: int) -> None:
        """Raises ``UserError`` if so many tokens are over the model's context."""
        context = context_of(self.model)
        if context and tokens > context:
            raise UserError(
                f"prompt and answer take {tokens} tokens, over the model's context of {context}"
            )

    def pipeline(self, **options: Any) -> Any:
        """transformers' text-generation pipeline over this model."""
        from transformers import pipeline

        return pipeline("text-generation", model=self.model, tokenizer=self.tokenizer, **options)


def context_of(model: Any) -> int | None:
    """Tokens that a model takes; None where it does not say."""
    return bounds.context_of(model.config)


def run_config(path: str | Path) -> ORPOConfig:
    """The config of a run folder, or of a checkpoint or stage in one; defaults for others."""
    folder = Path(path)
    inside = ("checkpoint-", STAGE, ASIDE)
    while folder.name.startswith(inside) and not RunFolder(folder).config.exists():
        folder = folder.parent
    config = RunFolder(folder).config
    return load_config(config) if config.exists() else ORPOConfig()


def run_configs(paths: Sequence[str]) -> list[ORPOConfig]:
    """``run_config`` of models that are to be compared.

    A model that another of them was trained from is loaded as that one was: else the two would
    differ by rounding too.
    """
    found = [run_config(path) for path in paths]
    trained = {run.model: run for run in reversed(found) if run.model}
    return [
        loaded_like(config, trained[base]) if (base := locate(path)) in trained else config
        for path, config in zip(paths, found, strict=True)
    ]


def loaded_like(config: ORPOConfig, run: ORPOConfig) -> ORPOConfig:
    """The config with what another says of how weights are loaded."""
    return config.replace(**{name: getattr(run, name) for name in LOADING})


def loading_config(
    path: str | Path, config: ORPOConfig | None = None, full_precision: bool = False
) -> ORPOConfig:
    """The config to open a model with: precision and quantization are those of its run.

    An adapter answers as in training only on the base that it was trained on. What was merged or
    fully trained is not quantised; any other model where ``config`` says so. Says what it decides.
    """
    run = run_config(path)
    config = run if config is None else config
    require_config(config)
    adapter = (Path(path).expanduser() / "adapter_config.json").exists()
    wanted = config.quantization if adapter or not config.merge_adapter else None
    wanted = run.quantization if adapter and run.quantization else wanted
    if wanted is not None:
        which = f"{path}: {'base ' * adapter}in"
        reason = why_not_quantised(wanted, local_device())
        if full_precision:
            logger.info("%s full precision, not in %s as in training: figures differ from those "
                        "of training", which, wanted)  # fmt: skip
        elif reason is not None:
            logger.warning("%s full precision, not in %s as in training: figures differ from "
                           "those of training, because %s", which, wanted, reason)  # fmt: skip
        else:
            logger.info("%s %s as %s; --full-precision loads it unquantised", which, wanted,
                        "in training" if adapter else "its fine-tune")  # fmt: skip
        wanted = None if full_precision or reason is not None else wanted
    return config.replace(
        mixed_precision=config.mixed_precision or run.mixed_precision,
        quantization=wanted,
        peft=config.peft or wanted is not None,
    )


def open_model(path: str | Path, config: ORPOConfig) -> TrainedModel:
    """The model at ``path``, loaded as the config says."""
    tokenizer = load_tokenizer(str(path), config)
    require_end(tokenizer)
    model = load_trained(path, config)
    metrics = read_json(RunFolder(path).run).get("metrics", {})
    return TrainedModel(model, tokenizer, config, Path(path), metrics)


def load(
    path: str | Path, config: ORPOConfig | None = None, full_precision: bool = False
) -> TrainedModel:
    """Open a run folder, a checkpoint, a model folder or a hub id for use.

    Raises ``UserError`` if there is no model. config: settings to use instead of the run's own.
    An adapter that was trained on a quantised base is opened on one; full_precision: not so.
    """
    return open_model(path, loading_config(path, config, full_precision))
