"""A whole checkpoint, told from any other by its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_dist.manifest import MANIFEST, STATE, TOPOLOGY, damage, facts_of, is_older
from tests.checkpoints import make_checkpoint

WEIGHTS = "model.safetensors"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])


@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        (WEIGHTS, Path.unlink, "its model.safetensors is missing"),
        (WEIGHTS, cut, "its model.safetensors has 5 of 7 bytes"),
        (WEIGHTS, flip, "its model.safetensors was changed: wrong checksum"),
        (STATE, flip, "its trainer_state.json was changed: wrong checksum"),
        (MANIFEST, cut, "its manifest.json is no JSON"),
        (MANIFEST, Path.unlink, "its manifest.json is missing"),
        (MANIFEST, lambda path: path.write_text('{"files": {}}'), "its manifest.json was changed"),
        ("more.txt", Path.touch, None),  # a file that someone has put there
    ],
)
def test_every_damage_is_named(
    name: str, harm: Callable[[Path], None], reason: str | None, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, 4)
    assert damage(checkpoint) is None
    harm(checkpoint / name)
    assert damage(checkpoint) == reason


def test_sizes_alone_are_a_look_and_checksums_a_proof(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 4)
    flip(checkpoint / WEIGHTS)
    assert damage(checkpoint, thorough=False) is None
    assert damage(checkpoint) is not None


def test_facts_are_kept(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 4, engine="zero2", plan={"epoch": 1})
    assert facts_of(checkpoint) == {"format": 1, "step": 4, "engine": "zero2", "plan": {"epoch": 1}}


@pytest.mark.parametrize(
    "missing", [None, "optimizer.pt", "scheduler.pt", "rng_state_1.pth", STATE]
)
def test_one_of_an_earlier_version_counts_if_all_its_files_are_there(
    missing: str | None, tmp_path: Path
) -> None:
    (tmp_path / TOPOLOGY).write_text(json.dumps({"engine": "ddp", "world_size": 2}))
    (tmp_path / STATE).write_text(json.dumps({"global_step": 4}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (tmp_path / name).touch()
    assert is_older(tmp_path)
    if missing is None:
        assert damage(tmp_path) is None
        return
    (tmp_path / missing).unlink()
    reason = damage(tmp_path)
    assert reason is not None and missing in reason
