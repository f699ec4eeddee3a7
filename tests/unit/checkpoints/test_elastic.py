"""The state of optimizers in a checkpoint, without launching anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW, GlobalOptimManager
from transformers import get_scheduler
from transformers.optimization import Adafactor

from orpo_dist import UserError
from orpo_dist.checkpoints import elastic
from orpo_dist.checkpoints.shards import Holding, holding, loss_scale, set_loss_scale
from orpo_dist.engines.engine import Engine
from orpo_dist.engines.runtime import Runtime

HERE = Runtime()
MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "adafactor": lambda p: Adafactor(p, lr=0.1, relative_step=False),
    # Smaller tensors than min_8bit_size keep a state in fp32, as biases do here.
    "adamw_8bit": lambda p: AdamW(p, lr=0.1, optim_bits=8, min_8bit_size=8),
    "paged_adamw_8bit": lambda p: AdamW(p, lr=0.1, optim_bits=8, min_8bit_size=8, is_paged=True),
    "paged_adamw_32bit": lambda p: AdamW(p, lr=0.1, is_paged=True),
}


@pytest.fixture(autouse=True)
def _no_overrides() -> None:
    """bitsandbytes keeps for the whole process which weights, by number, are in 32 bits."""
    GlobalOptimManager.get_instance().initialize()


class Training:
    """A small model with an optimizer and a schedule, trained on fixed data."""

    def __init__(self, kind: str = "adamw", schedule: str = "cosine", width: int = 5):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1))
        self.optimizer = MAKERS[kind](self.model.parameters())
        self.schedule = get_scheduler(schedule, self.optimizer, 2, 20)

    @property
    def held(self) -> Holding:
        return holding(self.model, self.model, self.optimizer)

    def steps(self, count: int) -> list[float]:
        losses = []
        data = torch.linspace(-1, 1, 24).view(6, 4)
        for _ in range(count):
            loss = (self.model(data) - data.sum(1, keepdim=True)).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            args = (loss.item(),) if "Plateau" in type(self.schedule).__name__ else ()
            self.schedule.step(*args)
            losses.append(loss.item())
        return losses

    def save(self, folder: Path) -> None:
        for file in elastic.save(folder, self.held, self.schedule, None, HERE):
            file.write()

    def load(self, folder: Path, here: Runtime = HERE) -> None:
        elastic.load(folder, self.held, self.schedule, here)


@pytest.mark.parametrize("kind", MAKERS)
def test_optimizers_go_on_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    whole, cut = Training(kind), Training(kind)
    whole.steps(4)
    whole.save(tmp_path)
    cut.model[0].weight.data.zero_()  # weights come with the state
    cut.load(tmp_path)
    assert cut.steps(4) == whole.steps(4)


@pytest.mark.parametrize(
    "schedule", ["linear", "cosine", "constant_with_warmup", "reduce_lr_on_plateau"]
)
def test_schedules_go_on(schedule: str, tmp_path: Path) -> None:
    whole, cut = Training(schedule=schedule), Training(schedule=schedule)
    whole.steps(4)
    whole.save(tmp_path)
    cut.load(tmp_path)
    assert cut.steps(4) == whole.steps(4)
    assert cut.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    training = Training()
    training.steps(1)
    training.save(tmp_path)
    names = {path.suffix for path in (tmp_path / elastic.FOLDER).iterdir()}
    assert names == {".json", ".safetensors"}


@pytest.mark.parametrize("kind", ["adafactor", "adamw_8bit"])
def test_state_that_cannot_be_cut_goes_on_as_it_was_cut(kind: str, tmp_path: Path) -> None:
    """Adafactor's rows and columns, 8-bit blocks; between one process and DDP, nothing is cut."""
    training = Training(kind)
    training.steps(2)
    training.save(tmp_path)
    Training(kind).load(tmp_path, Runtime(world_size=1, engine=Engine("ddp")))
    other = Training(kind)
    sharded = Holding(other.optimizer, other.held.shards, other.held.keys, other.held.sizes)
    with pytest.raises(UserError, match="cannot be cut anew; go on with 'orpo-dist launch single"):
        elastic.load(
            tmp_path, sharded, other.schedule, Runtime(world_size=2, engine=Engine("zero2"))
        )


def test_another_model_is_named(tmp_path: Path) -> None:
    Training(width=5).save(tmp_path)
    with pytest.raises(UserError, match=r"does not fit here: 0\.weight has 20 numbers there, 24"):
        Training(width=6).load(tmp_path)


def test_a_parameter_that_is_not_there_is_named(tmp_path: Path) -> None:
    small, large = Training(), Training()
    small.model[1].bias.requires_grad_(False)
    small.save(tmp_path)
    with pytest.raises(UserError, match=r"1\.bias is not among what trains there"):
        large.load(tmp_path)


def test_the_loss_scale_moves_between_deepspeed_and_torch() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(1))  # it is lazy
    own = SimpleNamespace(dynamic=True, cur_scale=2.0**7, cur_iter=30, last_overflow_iter=20)
    zero: Any = SimpleNamespace(loss_scaler=own)
    set_loss_scale(None, scaler, loss_scale(zero, None))
    assert loss_scale(None, scaler) == {"scale": 128.0, "steady": 9}
    other: Any = SimpleNamespace(
        loss_scaler=SimpleNamespace(
            dynamic=True, cur_scale=2.0**16, cur_iter=0, last_overflow_iter=-1
        )
    )
    set_loss_scale(other, None, loss_scale(None, scaler))
    assert loss_scale(other, None) == {"scale": 128.0, "steady": 9}
    assert loss_scale(None, None) is None


def test_random_numbers_are_drawn_anew_by_seed_step_and_rank() -> None:
    drawn = []
    for key in ((0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0), (0, 5, 0)):
        elastic.draw_anew(*key)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 4 and drawn[0] == drawn[-1]


def test_state_in_fp32_of_weights_in_half_precision_stays_in_fp32(tmp_path: Path) -> None:
    """torch keeps the moments of bf16 weights in bf16, bitsandbytes in fp32."""
    for kind, kept in (("adamw", torch.bfloat16), ("paged_adamw_32bit", torch.float32)):
        whole, again = Training(kind), Training(kind)
        for training in (whole, again):
            training.model[0].weight.data = training.model[0].weight.data.bfloat16()
        for _ in range(2):
            whole.model[0].weight.grad = torch.ones_like(whole.model[0].weight)
            whole.optimizer.step()
        whole.save(tmp_path / kind)
        again.load(tmp_path / kind)
        for training in (whole, again):
            state = training.optimizer.state[training.model[0].weight]
            assert {v.dtype for k, v in state.items() if torch.is_tensor(v) and v.dim() == 2} == {
                kept
            }
