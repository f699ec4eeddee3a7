"""accelerate: engines on a CPU, one engine after another, and the moment of a step."""

from __future__ import annotations

import os
from typing import Any

from orpo_dist.upstream.register import reaches_for


@reaches_for(
    "accelerate.state:PartialState._shared_state",
    "accelerate.state:PartialState@_cpu",
    "accelerate.state:PartialState@distributed_type",
    because="accelerate takes a CPU for the end of DeepSpeed and FSDP, with a world of one process",
    upstream="accelerate/state.py, PartialState.__init__ and AcceleratorState.__init__ (1.15)",
    until="PartialState(cpu=True) joins over gloo with DeepSpeed and FSDP asked for",
)
def join_on_cpu(engine: str) -> None:
    """Bring up gloo, and tell accelerate that its engine is there.

    It joins as plain CPU processes, and is then told the truth. engine: ddp, fsdp2 or zero1 to 3.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ.pop("ACCELERATE_USE_CPU", None)  # would end DeepSpeed and FSDP as well
    asked = os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    try:
        state = PartialState(cpu=True)
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = asked
    if engine == "ddp":
        return
    shared = state._shared_state
    # The type that becomes FSDP once accelerate sees its plugin is MULTI_GPU.
    shared["distributed_type"] = (
        DistributedType.DEEPSPEED if engine.startswith("zero") else DistributedType.MULTI_GPU
    )
    shared["_cpu"] = False


@reaches_for(
    "accelerate.state:AcceleratorState._reset_state(reset_partial_state)",
    "accelerate.state:PartialState._shared_state",
    because="accelerate keeps one plugin of an engine a process, with the first one's settings",
    upstream="accelerate/state.py, AcceleratorState (1.15); Trainer's search resets it so",
    until="an Accelerator can be made anew without its process group",
)
def forget_engine() -> None:
    """Let the next trainer of this process set its engine up anew, in the same process group."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()
    shared = PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.FSDP:
        shared["distributed_type"] = DistributedType.MULTI_GPU  # becomes FSDP as it did at first


@reaches_for(
    "accelerate.state:GradientState._set_sync_gradients(sync_gradients)",
    because="a step's micro-batches are counted here and not by accelerate, which only reads this",
    upstream="accelerate/state.py, GradientState (1.15); Trainer sets it so itself",
    until="GradientState.sync_gradients can be set",
)
def sync_gradients(accelerator: Any, now: bool) -> None:
    """Say whether this micro-batch is a step's last; without one accelerate makes no step."""
    accelerator.gradient_state._set_sync_gradients(now)


@reaches_for(
    "accelerate.commands.launch:_validate_launch_command(args)",
    "accelerate.utils.launch:prepare_deepspeed_cmd_env@deepspeed_fields_from_accelerate_config",
    because="what a launch tells its workers is nowhere to be had but from the launcher's own way",
    upstream="accelerate/commands/launch.py, launch_command (1.15)",
    until="accelerate tells the environment of a config file",
)
def launch_environment(words: list[str], deepspeed: bool) -> dict[str, str]:
    """The variables that ``accelerate launch WORDS`` would give to its workers."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if not deepspeed:
        return prepare_multi_gpu_env(options)
    # launch_command adds this on its way
    options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(options)[1]


@reaches_for(
    "torch.distributed.run:config_from_args@signals_to_handle",
    "accelerate.commands.launch:multi_gpu_launcher@_filter_args",
    because="torchrun kills its workers 30 s after a signal, in the middle of a checkpoint, and "
    "accelerate has no flag to tell it otherwise",
    upstream="torch/distributed/run.py (2.13), to which accelerate hands its options on",
    until="accelerate launch has --signals-to-handle",
)
def keep_from_signals(options: Any) -> None:
    """Let torchrun hear SIGHUP and SIGQUIT alone. options: of ``accelerate launch``."""
    options.signals_to_handle = "SIGHUP,SIGQUIT"


@reaches_for(
    "accelerate.hooks:add_hook_to_module@_hf_hook",
    because="a module whose weights accelerate places has a forward of accelerate's, not its own",
    upstream="accelerate/hooks.py, add_hook_to_module (1.15)",
    until="accelerate says of a module whether it has a hook",
)
def has_hook(module: Any) -> bool:
    """Whether accelerate places the weights of a module as it runs."""
    return hasattr(module, "_hf_hook")
