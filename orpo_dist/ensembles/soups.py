"""Soups: many models become one by averaging their weights (Wortsman et al. 2022).

Whole models, and adapters merged into their base, are averaged weight by weight. PEFT's own merges
(linear, TIES, DARE) work on adapters of one base. Either way an ordinary model folder comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from orpo_dist.base.types import UserError
from orpo_dist.data import Encoder
from orpo_dist.ensembles.listing import Listed
from orpo_dist.ensembles.members import Member, load_members, same_words, template_of
from orpo_dist.evaluation.evaluate import judge, shared_config
from orpo_dist.models.answering import mend_generation, stop_at
from orpo_dist.models.model import load_tokenizer, load_trained
from orpo_dist.models.trained import TrainedModel, run_config
from orpo_dist.runs.folder import RunFolder, write_json
from orpo_dist.training.card import write_card

logger = logging.getLogger("orpo_dist")

SoupMethod = Literal["uniform", "weighted", "greedy", "linear", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[str, ...] = get_args(SoupMethod)
MERGES = ("linear", "ties", "dare_linear", "dare_ties")
SPARSE = ("ties", "dare_linear", "dare_ties")

State = dict[str, torch.Tensor]
Judge = Callable[[TrainedModel], float]


def make_soup(
    members: Sequence[Listed],
    folder: Path,
    method: SoupMethod = "uniform",
    judge: Judge | None = None,
    density: float = 0.5,
    seed: int = 42,
) -> dict[str, Any]:
    """Write the soup of the members into ``folder``, which must not exist, and return its recipe.

    uniform: all alike; weighted: by the members' weights; greedy: beginning with the best, every
    member that does not make ``judge`` (higher is better) fall; linear, ties, dare_linear,
    dare_ties: PEFT's merges of adapters, by weights, of which the last three keep the share
    ``density`` of every adapter. Weights are divided by their sum. Adapters go into full-precision
    bases, also those that were trained on a quantised one. Raises ``UserError``.
    """
    if folder.exists():
        raise UserError(f"soup {folder}: exists already; choose another name")
    if method == "greedy" and judge is None:
        raise UserError("greedy needs pairs to judge by: pass --data-path FILE")
    if not 0 < density <= 1:
        raise UserError(f"density {density:g}: must be above 0 and at most 1")
    _refuse_other_words(members)
    _say_quantised(members)
    if method in MERGES:
        model, recipe = _merged_adapters(members, method, density, seed)
    elif method == "greedy":
        assert judge is not None
        model, recipe = _greedy(members, judge)
    else:
        weights = [member.weight if method == "weighted" else 1.0 for member in members]
        model, recipe = _weighted(members, weights)
    recipe = {"method": method, **recipe}
    _save(model, members[0].path, folder, recipe)
    return recipe


def _save(model: Any, first: str, folder: Path, recipe: dict[str, Any]) -> None:
    """Model, tokenizer, the first member's settings (how to cut data) and the recipe."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"soup {folder}: cannot be created ({error.strerror})") from error
    config = run_config(first)
    mend_generation(model)
    stop_at(model, Encoder(load_tokenizer(first, config), config.chat_template).end_id)
    model.save_pretrained(folder)
    load_tokenizer(first, config).save_pretrained(folder)
    whole = config.replace(
        project_name=str(folder), peft=False, quantization=None, use_dora=False,
        merge_adapter=False, lora_dtype="float32",
    )  # fmt: skip
    RunFolder(folder).write_config(whole)
    write_json(folder / "soup.json", recipe)
    write_card(folder)


def _refuse_other_words(members: Sequence[Listed]) -> None:
    """``UserError`` where weights of members stand for different words; a template may differ."""
    home = members[0].path
    words = load_tokenizer(home, run_config(home))
    for member in members[1:]:
        other = load_tokenizer(member.path, run_config(member.path))
        if not same_words(words, other):
            raise UserError(
                f"soup: {member.path} has another vocabulary than {home}, so their weights cannot "
                "be averaged"
            )
        theirs = template_of(other, run_config(member.path))
        if theirs != template_of(words, run_config(home)):
            logger.warning("soup: %s has another chat template than %s, whose template the soup "
                           "gets", member.path, home)  # fmt: skip


def _say_quantised(members: Sequence[Listed]) -> None:
    runs = {member.path: run_config(member.path) for member in members}
    quantised = [path for path, run in runs.items() if run.quantization and not run.merge_adapter]
    if quantised:
        logger.warning(
            "soup: %s trained on a quantised base; soups are made, and members judged, in full "
            "precision, so the figures are not those of training", ", ".join(quantised),
        )  # fmt: skip


def whole_model(path: str) -> Any:
    """A member on the CPU in fp32, its adapter merged into the base, if it has one."""
    config = run_config(path).replace(mixed_precision="none", quantization=None)
    model = load_trained(path, config).cpu()
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _state(model: Any, like: State | None, name: str) -> State:
    """The model's floating-point weights in fp32; ``UserError`` if they are not shaped alike."""
    state = {k: v.float().cpu() for k, v in model.state_dict().items() if v.is_floating_point()}
    if like is not None:
        odd = next((k for k in [*like, *state] if k not in state or k not in like
                    or state[k].shape != like[k].shape), None)  # fmt: skip
        if odd is not None:
            raise UserError(f"soup: {name} is another architecture (its {odd} does not fit)")
    return state


def _add(total: State, state: State, weight: float) -> None:
    for name, tensor in state.items():
        total[name].add_(tensor, alpha=weight)


def _scaled(state: State, factor: float) -> State:
    return {name: tensor * factor for name, tensor in state.items()}


def _fill(model: Any, state: State) -> Any:
    model.load_state_dict(state, strict=False)  # buffers of whole numbers stay the model's own
    return model


def _weighted(members: Sequence[Listed], weights: Sequence[float]) -> tuple[Any, dict[str, Any]]:
    """One member in memory at a time beside the sum."""
    shares = [weight / sum(weights) for weight in weights]
    model = whole_model(members[0].path)
    total = _scaled(_state(model, None, members[0].path), shares[0])
    for member, share in zip(members[1:], shares[1:], strict=True):
        _add(total, _state(whole_model(member.path), total, member.path), share)
    named = [{"path": m.path, "weight": share} for m, share in zip(members, shares, strict=True)]
    return _fill(model, total), {"members": named}


def _greedy(members: Sequence[Listed], judge: Judge) -> tuple[Any, dict[str, Any]]:
    """Members from best to worst, each kept if the soup does not get worse by it (recipe 1).

    All are judged with the tokenizer and settings of the first given one, which the soup is saved
    with: what is returned is, to the last bit, what was judged.
    """
    home = members[0].path
    alone = {m.path: judge(_handle(whole_model(m.path), home)) for m in members}
    first, *others = sorted(alone, key=lambda path: -alone[path])  # ties in the given order
    model = whole_model(first)
    total = {name: tensor.clone() for name, tensor in _state(model, None, first).items()}
    kept, best = 1, alone[first]
    log: list[dict[str, Any]] = [{"path": first, "alone": best, "with": best, "kept": True}]
    for path in others:
        state = _state(whole_model(path), total, path)
        more = {name: tensor + state[name] for name, tensor in total.items()}
        found = judge(_handle(_fill(model, _scaled(more, 1 / (kept + 1))), home))
        log.append({"path": path, "alone": alone[path], "with": found, "kept": found >= best})
        logger.info("%s: %.4f with it, %.4f before: %s", path, found, best,
                    "kept" if found >= best else "left out")  # fmt: skip
        if found >= best:
            total, kept, best = more, kept + 1, found
    return _fill(model, _scaled(total, 1 / kept)), {"members": log, "score": best}


def _handle(model: Any, path: str) -> TrainedModel:
    """The model where it computes fastest, ready to be judged as a model of ``path`` is."""
    config = run_config(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedModel(model.to(device).eval(), load_tokenizer(path, config), config, Path(path))


def _merged_adapters(
    members: Sequence[Listed], method: str, density: float, seed: int
) -> tuple[Any, dict[str, Any]]:
    """PEFT's ``add_weighted_adapter``, merged into the base."""
    loaded = load_members(members, {"mixed_precision": "none"}, full_precision=True)
    model = loaded[0].handle.model
    _refuse_unlike_adapters(loaded, method)
    torch.manual_seed(seed)  # DARE drops at random
    names = [str(member.adapter) for member in loaded]
    # PEFT scales A and B by the root of a weight each, then adds them (linear) or takes their mean
    # (ties): with these weights an adapter merged with itself stays what it is.
    count = len(loaded) if method.endswith("ties") else 1
    shares = [(count * member.weight) ** 2 for member in loaded]
    sparse = {"density": density} if method in SPARSE else {}
    try:
        model.add_weighted_adapter(names, shares, "soup", combination_type=method, **sparse)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{method}: these adapters cannot be merged ({reason})") from error
    model.set_adapter("soup")
    named = [{"path": m.name, "weight": m.weight} for m in loaded]
    return model.merge_and_unload().float(), {"members": named, **sparse}


def _refuse_unlike_adapters(members: Sequence[Member], method: str) -> None:
    """``UserError`` where PEFT would refuse to merge, or merge into something else."""
    model = members[0].handle.model
    others = "use uniform, weighted or greedy"
    if any(member.adapter is None or member.handle.model is not model for member in members):
        raise UserError(
            f"{method} merges adapters of one base, and not all members are that; {others}"
        )
    configs = [model.peft_config[member.adapter] for member in members]
    if any(config.use_dora for config in configs):  # PEFT leaves out DoRA's magnitudes
        raise UserError(f"{method}: DoRA adapters cannot be merged; {others}")
    layers = [adapted_layers(model, str(member.adapter)) for member in members]
    if odd := next((m for m, some in zip(members, layers, strict=True) if some != layers[0]), None):
        raise UserError(
            f"{method}: {odd.name} adapts other layers than {members[0].name}; {others}"
        )


def adapted_layers(model: Any, adapter: str) -> set[str]:
    """Names of the layers that an adapter changes."""
    return {
        name for name, module in model.named_modules() if adapter in getattr(module, "lora_A", ())
    }


def accuracy_judge(config_values: dict[str, Any], data_path: Sequence[str]) -> Judge:
    """Preference accuracy on held-out pairs, for greedy soups."""

    def accuracy(handle: TrainedModel) -> float:
        config = shared_config(handle.config, handle.config, config_values)
        return judge(handle, data_path, config).result["preference_accuracy"]

    return accuracy
