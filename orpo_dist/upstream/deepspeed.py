"""DeepSpeed: where ZeRO keeps weights, and the scale of an fp16 loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orpo_dist.upstream.register import reaches_for

STAGE12 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
STAGE3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
INIT = "deepspeed.runtime.zero.partition_parameters:Init"
SCALER = "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler"


class Piece(NamedTuple):
    """What this rank holds of a parameter.

    key: the flat tensor that DeepSpeed's optimizer updates, of this parameter and others. weight:
    (n,), numbers ``start`` to ``start + n`` of the parameter, which are those of ``key`` from
    ``offset`` on; None where nothing of it lies here.
    """

    parameter: Any
    key: Tensor
    start: int = 0
    offset: int = 0
    weight: Tensor | None = None


# --- parameters that ZeRO-3 has dealt out


@reaches_for(
    f"{INIT}@ds_id",
    because="a weight that ZeRO-3 has dealt out is known by an attribute alone",
    upstream="deepspeed/runtime/zero/partition_parameters.py, Init._convert_to_deepspeed_param "
    "(0.19)",
    until="DeepSpeed says of a parameter whether it is dealt out",
)
def is_dealt_out(parameter: Any) -> bool:
    """Whether ZeRO-3 has dealt a weight out, so that the tensor itself is empty."""
    return hasattr(parameter, "ds_id")


@reaches_for(
    f"{INIT}@ds_shape",
    because="ZeRO-3 leaves empty tensors in a model, and their shapes beside them",
    upstream="deepspeed/runtime/zero/partition_parameters.py, Init._convert_to_deepspeed_param "
    "(0.19); PEFT reads it so",
    until="a dealt-out parameter has the shape of the whole one",
)
def whole_shape(parameter: Any) -> torch.Size:
    """The shape of a weight, also of one that ZeRO-3 has dealt out."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@reaches_for(
    f"{INIT}@ds_numel",
    because="ZeRO-3 leaves empty tensors in a model, and their sizes beside them",
    upstream="deepspeed/runtime/zero/partition_parameters.py, Init._convert_to_deepspeed_param "
    "(0.19); PEFT reads it so",
    until="a dealt-out parameter has as many numbers as the whole one",
)
def whole_size(parameter: Any) -> int:
    """How many numbers a weight holds, also one that ZeRO-3 has dealt out."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


# --- what this rank holds


@reaches_for(
    STAGE3,
    because="the optimizers of its stages are told apart by their classes alone",
    upstream="deepspeed/runtime/zero/stage3.py (0.19)",
    until="DeepSpeed's optimizers say their stage",
)
def is_stage3(zero: Any) -> bool:
    """Whether DeepSpeed's optimizer, if there is any, is that of stage 3."""
    return zero is not None and type(zero).__name__ == "DeepSpeedZeroOptimizer_Stage3"


def pieces(zero: Any) -> Iterator[Piece]:
    """This rank's piece of every parameter that trains, in the order of DeepSpeed's groups."""
    return _pieces3(zero) if is_stage3(zero) else _pieces12(zero)


@reaches_for(
    f"{STAGE12}@bit16_groups",
    "deepspeed.utils.mixed_precision_linkage:link_hp_params@_hp_mapping",
    "deepspeed.utils.tensor_fragment:tensor_fragment@hp_fragment",
    "deepspeed.utils.tensor_fragment:tensor_fragment@hp_fragment_address",
    "deepspeed.utils.tensor_fragment:tensor_fragment@lp_fragment_address",
    "deepspeed.utils.tensor_fragment:fragment_address@start",
    because="its checkpoints are cut by its number of processes, and ours are by no number",
    upstream="deepspeed/utils/tensor_fragment.py and mixed_precision_linkage.py (0.19), on which "
    "its universal checkpoints stand",
    until="universal checkpoints are read and written without a second program",
)
def _pieces12(zero: Any) -> Iterator[Piece]:
    """Stages 1 and 2: a group of parameters is one flat tensor, of which every rank has a part."""
    for number, group in enumerate(zero.bit16_groups):
        flat = zero.optimizer.param_groups[number]["params"][0]
        for parameter in group:
            held = parameter._hp_mapping  # None: nothing of it lies here
            if held is None:
                yield Piece(parameter, flat)
                continue
            start, offset = held.lp_fragment_address.start, held.hp_fragment_address.start
            yield Piece(parameter, flat, start, offset, held.hp_fragment.detach())


@reaches_for(
    f"{STAGE3}@fp32_partitioned_groups_flat",
    f"{STAGE3}@fp16_groups",
    f"{STAGE3}@dp_process_group",
    f"{INIT}@partition_numel",
    f"{INIT}@ds_numel",
    because="its checkpoints are cut by its number of processes, and ours are by no number",
    upstream="deepspeed/runtime/zero/stage3.py (0.19), on which its universal checkpoints stand",
    until="universal checkpoints are read and written without a second program",
)
def _pieces3(zero: Any) -> Iterator[Piece]:
    """Stage 3: every parameter is cut evenly; a rank's parts of many lie in one flat tensor."""
    rank = dist.get_rank(group=zero.dp_process_group)
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for parameter in group:
            length = parameter.partition_numel()
            start = rank * length
            count = min(length, parameter.ds_numel - start)  # the last part may be filled up
            weight = flat.detach().narrow(0, offset, count) if count > 0 else None
            yield Piece(parameter, flat, start, offset, weight)
            offset += length


@reaches_for(
    f"{STAGE3}._set_fp32_optimizer_param_groups()",
    f"{STAGE3}._clear_fp32_optimizer_param_groups()",
    because="ZeRO-3 takes its tensors out of the groups, and state_dict() is empty without them",
    upstream="deepspeed/runtime/zero/stage3.py, _rigid_state_dict (0.19), which does the same",
    until="state_dict() of the optimizer inside works at any time",
)
@contextlib.contextmanager
def whole_groups(zero: Any) -> Iterator[None]:
    """Within it, ``state_dict()`` of the optimizer that DeepSpeed's wraps works."""
    if not is_stage3(zero):
        yield
        return
    zero._set_fp32_optimizer_param_groups()
    try:
        yield
    finally:
        zero._clear_fp32_optimizer_param_groups()


@reaches_for(
    f"{STAGE12}.update_lp_params()",
    f"{STAGE3}@fp16_partitioned_groups_flat",
    f"{STAGE3}@persistent_parameters",
    f"{STAGE3}.checkpoint_event_prologue()",
    f"{STAGE3}.checkpoint_event_epilogue()",
    f"{INIT}@partition",
    because="weights come from a checkpoint into what the optimizer updates, not into the model",
    upstream="deepspeed/runtime/zero/stage3.py, load_state_dict (0.19), which does the same",
    until="DeepSpeed copies the weights that it updates into the model on demand, in all stages",
)
def publish(zero: Any) -> None:
    """Let the weights that compute follow those that are updated; all ranks together."""
    if not is_stage3(zero):
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # small parameters lie whole on every rank: gather them anew
    flats = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    with torch.no_grad():
        for computes, precise in flats:
            computes.copy_(precise)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
    zero.checkpoint_event_epilogue()


# --- the scale of the loss, and the step


@reaches_for(
    f"{STAGE12}@loss_scaler",
    f"{STAGE3}@loss_scaler",
    f"{SCALER}@dynamic",
    f"{SCALER}@cur_scale",
    f"{SCALER}@cur_iter",
    f"{SCALER}@last_overflow_iter",
    because="a run goes on with the scale of its fp16 loss, also on another engine",
    upstream="deepspeed/runtime/fp16/loss_scaler.py, DynamicLossScaler (0.19)",
    until="its loss scaler has a state_dict()",
)
def scale_and_steady(zero: Any) -> tuple[float, int] | None:
    """The scale of an fp16 loss, and for how many steps nothing has overflowed; None without."""
    own = zero.loss_scaler
    return (own.cur_scale, own.cur_iter - own.last_overflow_iter - 1) if own.dynamic else None


def set_scale(zero: Any, scale: float, steady: int) -> None:
    """Go on with what ``scale_and_steady`` has told, where the loss is scaled."""
    own = zero.loss_scaler
    if own.dynamic:
        own.cur_scale = scale
        own.last_overflow_iter = own.cur_iter - 1 - steady


@reaches_for(
    "accelerate.accelerator:Accelerator@deepspeed_engine_wrapped",
    "accelerate.utils.deepspeed:DeepSpeedEngineWrapper@engine",
    because="accelerate leaves the schedule and the scale of the loss to the engine it wraps",
    upstream="accelerate/utils/deepspeed.py, DeepSpeedEngineWrapper (1.15)",
    until="Accelerator hands out the engine",
)
def engine_of(accelerator: Any) -> Any:
    """The engine that has prepared the model: a ``DeepSpeedEngine``."""
    return accelerator.deepspeed_engine_wrapped.engine


@reaches_for(
    "deepspeed.ops:__getattr__@__compatible_ops__",
    because="on CPUs DeepSpeed compiles operations to reduce by, for which a compiler has to be "
    "there",
    upstream="deepspeed/comm/torch.py, build_shm_op (0.19)",
    until="a variable or a setting of DeepSpeed leaves them out",
)
def reduce_by_gloo() -> None:
    """Let DeepSpeed on CPUs reduce as torch does, without compiling anything."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
