"""bitsandbytes: int4 layers that train on a CPU, how many weights they hold, paged state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orpo_dist.upstream.register import reaches_for


@reaches_for(
    "bitsandbytes.nn.modules:Linear4bit@support_avx512bf16_for_cpu",
    because="int4 weights are repacked for AVX512 at the first evaluation, and then trained on "
    "with a product that has no gradient",
    upstream="bitsandbytes/nn/modules.py, Linear4bit.forward (0.50)",
    until="the product that repacked weights are used with has a gradient",
)
def keep_trainable(model: Any) -> None:
    """Let the int4 layers of a model stay as they are on a CPU."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@reaches_for(
    "bitsandbytes.nn.modules:Params4bit",
    because="int4 weights lie several in a number, and the tensor does not say so",
    upstream="bitsandbytes/nn/modules.py, Params4bit (0.50)",
    until="a quantised parameter says how many weights it holds",
)
def weights_per_number(parameter: Any) -> int:
    """How many weights lie in one number of a parameter's tensor: of int4, two in a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return 2 * int(parameter.element_size()) if packed else 1


@reaches_for(
    "bitsandbytes.optim.optimizer:Optimizer8bit.get_state_buffer(p, dtype)",
    "bitsandbytes.optim.optimizer:Optimizer8bit@is_paged",
    because="a paged state that is loaded lies in the GPU's own memory, which may not hold it",
    upstream="bitsandbytes/optim/optimizer.py, Optimizer8bit.load_state_dict (0.50)",
    until="load_state_dict leaves paged state where it is",
)
def page_again(optimizer: Any) -> None:
    """Let a state that was loaded be paged as one that was begun, where the optimizer pages."""
    if not getattr(optimizer, "is_paged", False):
        return
    for weight, state in optimizer.state.items():
        for kind in ("state1", "state2"):
            loaded = state.get(kind)
            if isinstance(loaded, Tensor) and loaded.shape == weight.shape:
                buffer = optimizer.get_state_buffer(weight, dtype=loaded.dtype)
                state[kind] = buffer.copy_(loaded)
