"""Ranges of tensors: written by some, read by others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from orpo_dist import UserError
from orpo_dist.checkpoints import pieces
from orpo_dist.checkpoints.pieces import Piece, Pieces, unwritten


def write(folder: Path, rank: int, pieces: list[Piece]) -> None:
    for file in unwritten(folder, rank, pieces):
        file.write()


def written(folder: Path, whole: torch.Tensor, cuts: list[int]) -> None:
    """``whole`` in ranges that begin at ``cuts``, one a rank."""
    for rank, (start, end) in enumerate(zip(cuts, [*cuts[1:], len(whole)], strict=True)):
        write(folder, rank, [Piece("a.b", "weight", start, whole[start:end])])


@pytest.mark.parametrize("cuts", [[0], [0, 40], [0, 33, 66, 67]])
@pytest.mark.parametrize("reads", [[0, 100], [0, 50, 100], [0, 1, 34, 70, 100]])
def test_any_cut_is_read_by_any_other(cuts: list[int], reads: list[int], tmp_path: Path) -> None:
    whole = torch.randn(100)
    written(tmp_path, whole, cuts)
    with Pieces(tmp_path) as found:
        assert found.names() == {"a.b"} and found.size("a.b") == 100
        for start, end in itertools.pairwise(reads):
            target = torch.zeros(end - start)
            found.read_into(target, "a.b", "weight", start)
            assert torch.equal(target, whole[start:end])


def test_views_of_one_memory_and_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's parts are views into one tensor, which safetensors would refuse."""
    monkeypatch.setattr(pieces, "FILE_BYTES", 64)
    flat = torch.arange(60.0)
    parts = [Piece(f"p{n}", "exp_avg", 0, flat.narrow(0, 10 * n, 10)) for n in range(6)]
    write(tmp_path, 3, parts)
    assert len(list(tmp_path.glob("rank-00003-part-*.safetensors"))) == 3
    with Pieces(tmp_path) as found:
        target = torch.zeros(10, dtype=torch.bfloat16)
        found.read_into(target, "p4", "exp_avg", 0)
        assert target.tolist() == list(range(40, 50))
        assert found.kinds("p4") == ["exp_avg"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    whole = torch.randn(100)
    written(tmp_path, whole, [0, 40, 70])
    (tmp_path / "rank-00001-part-000.safetensors").unlink()
    with Pieces(tmp_path) as found, pytest.raises(UserError, match=r"of a\.b from number 40 on"):
        found.read_into(torch.zeros(100), "a.b", "weight", 0)


def test_a_cut_file_is_one_sentence(tmp_path: Path) -> None:
    written(tmp_path, torch.randn(100), [0])
    file = tmp_path / "rank-00000-part-000.safetensors"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read"), Pieces(tmp_path):
        pass


def test_files_are_closed_when_all_is_read(tmp_path: Path) -> None:
    written(tmp_path, torch.arange(10.0), [0])
    with Pieces(tmp_path) as found:
        found.read_into(torch.empty(10), "a.b", "weight", 0)
    with pytest.raises(SafetensorError, match="closed"):
        found.read_into(torch.empty(10), "a.b", "weight", 0)
