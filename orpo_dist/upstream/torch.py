"""torch: operations watched and run without data, storages told apart, schedules set anew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from orpo_dist.upstream.register import reaches_for

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTED = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"


@reaches_for(
    "torch.utils._python_dispatch:TorchDispatchMode.__torch_dispatch__(func, types, args, kwargs)",
    "torch.utils._pytree:tree_iter(tree, is_leaf)",
    because="memory is planned by what every single operation makes, below autograd",
    upstream="torch/utils/_python_dispatch.py (2.13); torch's own memory trackers stand on it",
    until="TorchDispatchMode and tree_iter have public names",
)
def watching(seen: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
    """Within it, ``seen`` is called with every tensor that an operation makes."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in tree_iter(result):
                if isinstance(tensor, Tensor):
                    seen(tensor)
            return result

    return Watching()


@reaches_for(
    "torch._subclasses.fake_tensor:FakeTensorMode",
    because="memory is planned by running the real code, without data and on any machine",
    upstream="torch/_subclasses/fake_tensor.py (2.13)",
    until="FakeTensorMode has a public name",
)
def without_data() -> AbstractContextManager[Any]:
    """Within it, tensors have shapes and types, and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


@reaches_for(
    "torch:UntypedStorage._cdata",
    because="tensors that lie in one storage are told by it, also fake ones, which have no address",
    upstream="torch/storage.py, UntypedStorage (2.13)",
    until="storages can be compared, or hashed by what they hold",
)
def storage_id(tensor: Tensor) -> int:
    """The same number for all tensors of one storage, for as long as that lives."""
    return int(tensor.untyped_storage()._cdata)


@reaches_for(
    "torch.optim.lr_scheduler:LRScheduler@_last_lr",
    because="a run that goes on has its own learning rate, of which the log asks the schedule",
    upstream="torch/optim/lr_scheduler.py, LRScheduler.get_last_lr (2.13)",
    until="a schedule's rates can be set",
)
def tell_rates(schedule: Any, rates: list[float]) -> None:
    """Let ``get_last_lr()`` of a schedule answer with these."""
    schedule._last_lr = rates


GROWTH = "_growth_tracker"  # of GradScaler.state_dict(), whose documentation names it


@reaches_for(
    f"torch.amp.grad_scaler:GradScaler.state_dict@{GROWTH}",
    f"torch.amp.grad_scaler:GradScaler.load_state_dict@{GROWTH}",
    because="a run goes on with the scale of its fp16 loss, also on another engine",
    upstream="torch/amp/grad_scaler.py, GradScaler.state_dict (2.13)",
    until="GradScaler has a public name for its steps without overflow",
)
def scale_and_steady(scaler: Any) -> tuple[float, int]:
    """The scale of an fp16 loss, and for how many steps nothing has overflowed."""
    return scaler.get_scale(), int(scaler.state_dict()[GROWTH])


def set_scale(scaler: Any, scale: float, steady: int) -> None:
    """Go on with what ``scale_and_steady`` has told."""
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale, GROWTH: steady})


@reaches_for(
    f"{CHECKPOINTED}:_CHECKPOINT_PREFIX=_checkpoint_wrapped_module.",
    because="FSDP2's activation checkpointing puts its wrapper's name into those of parameters",
    upstream="torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py (2.13)",
    until="named_parameters() leaves wrappers out",
)
def plain_name(name: str) -> str:
    """A parameter's name without the wrappers of torch.compile and activation checkpointing."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
