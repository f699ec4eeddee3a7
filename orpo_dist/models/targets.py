"""What an adapter can reach in a model, tried out on a miniature, and what it reaches, in numbers.

A layer can be adapted if it is called as a layer in training, maps the last dimension of one tensor
as its sizes say, gets a gradient, and its adapter is the same after it was saved and loaded.
"""

from __future__ import annotations

import copy
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orpo_dist.base.reasons import reason_of
from orpo_dist.base.types import UserError
from orpo_dist.models.randomness import quiet
from orpo_dist.scoring import proof
from orpo_dist.scoring.miniature import miniature
from orpo_dist.upstream.deepspeed import whole_size

logger = logging.getLogger("orpo_dist")

ALL = "all-linear"
INCOMPATIBLE = re.compile(r"Module '(\w+)' is incompatible")  # how PEFT says it
EXPERTS = re.compile(r"(?i)(?<!shared_)experts?\b")
IDS = (tuple(range(1, 41)),)  # beyond every window of a miniature


def pattern(name: str) -> str:
    """The name of a module without the numbers of its layer and its expert."""
    return re.sub(r"\d+", "N", name)


def fitted(model: Any, peft_config: Any) -> Any:
    """The settings of an adapter with the modules that it can be put on by name.

    all-linear becomes the linear layers that can be adapted, without the vocabulary head. Raises
    ``UserError`` if none can, or if one cannot that was asked for by name.
    """
    targets = peft_config.target_modules
    if str(getattr(peft_config.peft_type, "value", "")) != "LORA":
        return peft_config
    unfit = unfit_layers(model, peft_config)
    if targets != ALL:
        for name, reason in unfit.items():
            raise UserError(
                f"target_modules {','.join(sorted(targets))}: {name} {reason} in "
                f"{type(model).__name__}; leave it out"
            )
        return peft_config
    names = {name for name in _linear(model) if pattern(name) not in unfit}
    if not names:
        raise UserError(f"peft: {type(model).__name__} has no linear layer that can be adapted")
    peft_config = copy.copy(peft_config)
    peft_config.target_modules = names
    return peft_config


_known: dict[tuple[Any, ...], dict[str, str]] = {}


def unfit_layers(model: Any, peft_config: Any) -> dict[str, str]:
    """Patterns of the layers that are targets but cannot be adapted, and why."""
    targets = peft_config.target_modules
    if targets != ALL and isinstance(targets, str | None):  # PEFT alone finds modules by that
        return {}
    wanted = ALL if targets == ALL else tuple(sorted(targets))
    key = (type(model), model.config.to_json_string(use_diff=False), wanted)
    if key not in _known:
        try:
            with proof.undisturbed(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                small = miniature(model)
                quiet(small)
                _known[key] = _try(small.train(), peft_config, wanted)
        except Exception as error:  # of a class that cannot be built small
            logger.info(
                "adapter: put on every target, untried, as no miniature of the model can be built "
                "(%s)", reason_of(error),
            )  # fmt: skip
            _known[key] = {}
    return _known[key]


def _try(small: Any, peft_config: Any, targets: Any) -> dict[str, str]:
    wanted = [
        name
        for name in _linear(small)
        if targets == ALL or any(f".{name}".endswith(f".{target}") for target in targets)
    ]
    unfit = _not_layers(small, wanted)
    if all(pattern(name) in unfit for name in wanted):
        return unfit
    while True:
        left = [name for name in wanted if pattern(name) not in unfit]
        try:
            adapted = _adapted(small, peft_config, left)
        except ValueError as error:
            found = INCOMPATIBLE.search(str(error))
            if found is None:
                raise
            unfit |= {
                pattern(name): "is read past its call by kernels"
                for name in left
                if name.rpartition(".")[2] == found[1]
            }
        else:
            return unfit | _without_gradient(adapted) | _not_coming_back(small, adapted)


def _linear(model: Any) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


@torch.no_grad()
def _not_layers(small: Any, names: list[str]) -> dict[str, str]:
    """Patterns of modules that are never called, or that are called as something else."""
    called: dict[str, bool] = {}
    handles = []
    for name in names:

        def see(module: Any, given: Any, output: Any, name: str = pattern(name)) -> None:
            rows, columns = module.weight.shape
            size = rows if isinstance(module, nn.Linear) else columns  # GPT-2's is the other way
            right = isinstance(output, Tensor) and output.shape == (*given[0].shape[:-1], size)
            called[name] = called.get(name, True) and right

        handles.append(small.get_submodule(name).register_forward_hook(see))
    small(input_ids=torch.tensor(IDS), use_cache=False)
    for handle in handles:
        handle.remove()
    reasons = {True: "", False: "returns something else than a linear layer does"}
    found = {
        pattern(name): reasons[called[pattern(name)]]
        if pattern(name) in called
        else "is not called as a layer"
        for name in names
    }
    return {name: reason for name, reason in found.items() if reason}


def _adapted(small: Any, peft_config: Any, names: list[str]) -> Any:
    """A copy of the miniature in a random adapter, and with gradients."""
    from peft import get_peft_model

    settings = copy.deepcopy(peft_config)
    settings.target_modules, settings.lora_dropout = set(names), 0.0
    model = get_peft_model(copy.deepcopy(small), settings).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.02)
    logits = model(input_ids=torch.tensor(IDS), use_cache=False).logits
    logits.log_softmax(-1)[..., 1].sum().backward()
    return model


def _own(adapted: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Names of modules in the base, with a parameter of their adapter."""
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            inner = name.removeprefix("base_model.model.")
            yield inner.partition(".lora_")[0], parameter


def _without_gradient(adapted: Any) -> dict[str, str]:
    moved = {pattern(name) for name, p in _own(adapted) if p.grad is not None}
    all_of_them = {pattern(name) for name, _ in _own(adapted)}
    return dict.fromkeys(all_of_them - moved, "gets no gradient")


def _not_coming_back(small: Any, adapted: Any) -> dict[str, str]:
    """Patterns of modules whose adapter is another after it was saved and loaded."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        again = PeftModel.from_pretrained(copy.deepcopy(small), folder, is_trainable=True)
    trained, loaded = list(_own(adapted)), list(_own(again))
    if [name for name, _ in trained] != [name for name, _ in loaded]:
        lost = {name for name, _ in trained} ^ {name for name, _ in loaded}
    else:
        lost = {
            name
            for (name, before), (_, after) in zip(trained, loaded, strict=True)
            if not torch.equal(before, after)
        }
    return {pattern(name): "does not come back when its adapter is loaded" for name in lost}


# --- what it reaches


def reached(policy: Any, peft_config: Any) -> str:
    """What an adapter is on and what it leaves out, in numbers.

    peft_config: as it was asked for.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    core, adapted, experts, total, names = policy.get_base_model(), 0, [0, 0], 0, Counter[str]()
    for path, module in core.named_modules():
        if ".lora_" in f".{path}.":
            continue
        size = _size(module)
        held = path.endswith("base_layer")
        total, adapted = total + size, adapted + size * held
        if EXPERTS.search(path) or EXPERTS.search(type(module).__name__):
            experts[held] += size
        if isinstance(module, BaseTunerLayer):
            names[path.rpartition(".")[2]] += 1
    weights = sum(whole_size(p) for p in policy.parameters() if p.requires_grad)
    said = (
        f"{sum(names.values())} modules ({', '.join(f'{n} {c}' for n, c in sorted(names.items()))})"
        f", {weights:,} weights to train; they reach {adapted / total:.0%} of the base's {total:,}"
    )
    if sum(experts):
        kind = "some of them" if all(experts) else "all" if experts[1] else "none"
        said += (
            f"; of the experts, {sum(experts) / total:.0%} of the base's weights, {kind} adapted"
        )
    left = [f"{name} ({reason})" for name, reason in unfit_layers(core, peft_config).items()]
    return said + (f"; left out: {', '.join(left)}" if left else "")


def _size(module: nn.Module) -> int:
    """Weights of a module itself; quantised ones are packed, and sharded ones elsewhere."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return sum(whole_size(p) for p in module.parameters(recurse=False))
