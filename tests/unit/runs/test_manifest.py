"""A whole checkpoint, told from any other by its manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_dist.runs.manifest import MANIFEST, STATE, damage, facts_of
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
