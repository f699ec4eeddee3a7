"""``Ensemble``: many models that answer and score like one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from orpo_dist.base.types import Pair, UserError
from orpo_dist.ensembles.average import AverageModel, AverageOf
from orpo_dist.ensembles.choose import Criterion, total_scores
from orpo_dist.ensembles.listing import find_members
from orpo_dist.ensembles.members import Member, load_members
from orpo_dist.models.trained import Prompt, TrainedModel, context_of
from orpo_dist.scoring.scorer import Scorer, make_scorer

Method = Literal["average", "vote", "best_of"]


@dataclass(frozen=True)
class Candidate:
    """An answer to a prompt, who wrote it, and what the ensemble thinks of it."""

    text: str
    by: str
    score: float


@dataclass(frozen=True)
class Ensemble:
    """Members and the way they decide.

    average: token by token, the average of their distributions (``average_of`` probabilities or
    logits). vote: every member answers, the answer that all together score highest wins. best_of:
    the answer of which any one member is surest wins. samples: answers of each member to choose
    from. criterion: what answers are scored by (``choose.criterion_scores``).
    """

    members: list[Member]
    method: Method = "average"
    average_of: AverageOf = "probabilities"
    criterion: Criterion = "logp"
    samples: int = 1

    def __post_init__(self) -> None:
        for name, kind in (("method", Method), ("average_of", AverageOf), ("criterion", Criterion)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UserError(f"{name} {getattr(self, name)!r}: choose one of {known}")
        if self.method == "average":
            _ = self.averaged  # refuses different vocabularies at once

    @cached_property
    def averaged(self) -> TrainedModel:
        """The average as a model like any other."""
        first = self.members[0].handle
        model = AverageModel(self.members, self.average_of)
        return TrainedModel(model, first.tokenizer, first.config, Path("average"))

    @cached_property
    def weights(self) -> np.ndarray:
        return np.array([member.weight for member in self.members])

    @cached_property
    def scorers(self) -> list[Scorer]:
        """How each member scores; members that share a base share the proof that it packs."""
        found: dict[int, Scorer] = {}
        for member in self.members:
            handle = member.ready()
            key = id(handle.model)
            found[key] = found.get(key) or make_scorer(handle.model, handle.config.attention)
        return [found[id(member.handle.model)] for member in self.members]

    def generate(self, prompt: Any, max_new_tokens: int = 128, **options: Any) -> Any:
        """Answer one prompt or a list of prompts, greedily by default.

        options: any of transformers' generation parameters.
        """
        if self.method == "average":
            return self.averaged.generate(prompt, max_new_tokens=max_new_tokens, **options)
        single = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], dict))
        prompts = [prompt] if single else prompt
        found = self.candidates(prompts, max_new_tokens=max_new_tokens, **options)
        texts = [max(answers, key=lambda answer: answer.score).text for answers in found]
        return texts[0] if single else texts

    def candidates(self, prompts: Sequence[Prompt], **options: Any) -> list[list[Candidate]]:
        """All answers to every prompt, with their scores, in the order of the members."""
        if options.get("num_return_sequences", 1) != 1:
            raise UserError(f"num_return_sequences: {self.method} writes one answer; set samples")
        if self.samples > 1 and not options.get("do_sample"):
            raise UserError(
                f"samples {self.samples}: greedy answers are all the same; set a temperature"
            )
        written: list[list[tuple[str, str]]] = [[] for _ in prompts]
        for member in self.members:
            for _ in range(self.samples):
                texts = member.ready().generate(list(prompts), **options)
                for answers, text in zip(written, texts, strict=True):
                    answers.append((text, member.name))
        return [
            self._judged(prompt, answers) for prompt, answers in zip(prompts, written, strict=True)
        ]

    def _judged(self, prompt: Prompt, answers: list[tuple[str, str]]) -> list[Candidate]:
        assert self.method != "average"
        scores = self.scores(prompt, [text for text, _ in answers])
        totals = total_scores(scores, self.weights, self.method, self.criterion)
        return [
            Candidate(text, by, float(total))
            for (text, by), total in zip(answers, totals, strict=True)
        ]

    @torch.no_grad()
    def scores(self, prompt: Prompt, answers: Sequence[str]) -> np.ndarray:
        """Every member's mean log-prob per token of every answer, (members, answers)."""
        found = np.zeros((len(self.members), len(answers)))
        for row, member, scorer in zip(found, self.members, self.scorers, strict=True):
            handle = member.ready()
            pairs = []
            for at in range(0, len(answers), 2):  # two answers share the prompt
                both = [answers[at], answers[min(at + 1, len(answers) - 1)]]
                encoded = [handle.encode_answer(prompt, answer) for answer in both]
                ids = encoded[0][0]
                handle.check_length(len(ids) + 1)
                # One that was written up to the very end of the context is scored by what fits.
                room = (context_of(handle.model) or sys.maxsize) - len(ids)
                pairs.append(Pair(ids, encoded[0][1][:room], encoded[1][1][:room]))
            handle.model.eval()
            for number, pair in enumerate(pairs):
                batch = scorer.collate([pair]).to(handle.model.device)
                scored = scorer.score(handle.model, batch)
                two = [scored.chosen_logp.item(), scored.rejected_logp.item()]
                row[2 * number : 2 * number + 2] = two[: len(answers) - 2 * number]
            if not np.isfinite(row).all():
                raise UserError(f"{member.name}: scores NaN; its weights are not finite")
        return found

    def score(self, prompt: Prompt, completion: str) -> float:
        """What the ensemble thinks of one answer.

        average: its mean log-prob per token under the averaged distribution (nats); vote: the mean
        of the members' mean log-probs (or log odds); best_of: the highest of them.
        """
        if self.method == "average":
            return self.averaged.score(prompt, completion)
        if len(self.members[0].handle.encode_answer(prompt, completion)[1]) < 2:
            raise UserError("completion: is empty")
        return self._judged(prompt, [(completion, "")])[0].score


def load_ensemble(
    paths: str | Path | Sequence[str | Path],
    method: Method = "average",
    weights: Sequence[float] | None = None,
    average_of: AverageOf = "probabilities",
    criterion: Criterion = "logp",
    samples: int = 1,
    settings: Mapping[str, Any] | None = None,
    full_precision: bool = False,
) -> Ensemble:
    """Load an ensemble: a folder with an ``ensemble.json``, or its members one by one.

    weights: one per member (default: the file's, or all alike). settings: of ``ORPOConfig``, over
    those of the members' runs, e.g. ``mixed_precision``. full_precision: adapters that were trained
    on a quantised base are opened on an unquantised one. Raises ``UserError``.
    """
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    listed = find_members([str(name) for name in names], weights)
    if samples < 1:
        raise UserError(f"samples {samples}: must be at least 1")
    members = load_members(listed, settings, full_precision)
    return Ensemble(members, method, average_of, criterion, samples)
