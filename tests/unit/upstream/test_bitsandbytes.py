"""State that bitsandbytes pages, without a GPU to page it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW, GlobalOptimManager

from orpo_dist.upstream.bitsandbytes import page_again


@pytest.fixture(autouse=True)
def _no_overrides() -> None:
    """bitsandbytes keeps for the whole process which weights, by number, are in 32 bits."""
    GlobalOptimManager.get_instance().initialize()


def stepped(paged: bool) -> Any:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5000))
    optimizer = AdamW([weight], lr=0.1, optim_bits=8, is_paged=paged)
    weight.grad = weight.detach().square()
    optimizer.step()
    return optimizer


def test_loaded_state_goes_into_buffers_of_the_optimizer() -> None:
    optimizer, made = stepped(paged=True), []
    (weight, state), plain = next(iter(optimizer.state.items())), optimizer.get_state_buffer
    before = {name: value for name, value in state.items() if torch.is_tensor(value)}

    def buffer(p: Any, dtype: torch.dtype) -> torch.Tensor:
        made.append(plain(p, dtype=dtype))
        return made[-1]

    optimizer.get_state_buffer = buffer
    page_again(optimizer)
    assert [id(one) for one in made] == [id(state["state1"]), id(state["state2"])]
    assert all(one.dtype == torch.uint8 and one.shape == weight.shape for one in made)
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    assert state["qmap1"] is before["qmap1"]  # not of the weight's shape


def test_what_is_not_paged_stays_where_it_is() -> None:
    for optimizer in (stepped(paged=False), torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])):
        before = {id(v) for state in optimizer.state.values() for v in state.values()}
        page_again(optimizer)
        assert before == {id(v) for state in optimizer.state.values() for v in state.values()}
