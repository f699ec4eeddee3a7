"""Every checkpoint goes on on every engine and any number of processes, as if nothing had moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.launching import assert_engine, curve, in_one_launch

PAIRS, STEPS, CUT = 60, 8, 5  # an epoch in 8 steps, the last one short; saved after the 5th
NEAR = 1e-4
NEAR_BF16 = 2e-3  # what engines differ by in bf16 anyway: tests/invariance/test_precision.py

Place = tuple[str, int]  # preset, processes

SHARDED = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2")
ALL: list[Place] = [("single", 1), *((preset, n) for preset in SHARDED for n in (2, 3))]
SINGLE, DDP, ZERO2, ZERO3, FSDP2 = (
    ("single", 1),
    ("ddp", 2),
    ("zero2", 3),
    ("zero3", 2),
    ("fsdp2", 3),
)
# A dozen moves, to each place from others: a launch makes what later ones go on from.
DOZEN: list[tuple[Place, list[Place]]] = [
    (DDP, [SINGLE, DDP]),
    (ZERO2, [SINGLE, DDP]),
    (ZERO3, [DDP, ZERO2, ZERO3]),
    (FSDP2, [SINGLE, ZERO2, ZERO3]),
    (SINGLE, [ZERO2, ZERO3, FSDP2]),
]


def name_of(place: Place) -> str:
    return f"{place[0]}-{place[1]}"


class Moves:
    """Runs from start to end at some places, and moves between them."""

    def __init__(self, model: Path, folder: Path, **settings: Any):
        self.folder, self.settings = folder, settings
        lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()[:PAIRS]
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.settings = {
            "model": str(model), "data_path": str(folder / "pairs.jsonl"), "batch_size": 2,
            "global_batch_size": 8, "max_steps": STEPS, "lr": 2e-3, "save_strategy": "steps",
            "save_steps": CUT, "logging_steps": 1, "log": "none", **settings,
        }  # fmt: skip

    def launch(self, place: Place, jobs: Sequence[dict[str, Any]]) -> str:
        """Do jobs one after another in one launch; returns its log."""
        return in_one_launch(*place, [{**self.settings, **job} for job in jobs], self.folder)

    def whole(self, place: Place) -> Path:
        """The folder of the uninterrupted run at a place, with its checkpoint on the way."""
        path = self.folder / name_of(place)
        if not path.exists():
            self.launch(place, [{"project_name": str(path)}])
        return path

    def go_on(self, sources: Sequence[Place], here: Place) -> dict[Place, Path]:
        """The folders of runs that go on here from those of other places."""
        jobs: list[dict[str, Any]] = []
        folders: dict[Place, Path] = {}
        if not (own := self.folder / name_of(here)).exists():
            jobs.append({"project_name": str(own)})
        for source in sources:
            whole = own if source == here else self.whole(source)
            folders[source] = self.folder / f"{name_of(source)}-to-{name_of(here)}"
            jobs.append({
                "project_name": str(folders[source]),
                "resume_from_checkpoint": str(whole / f"checkpoint-{CUT}"),
            })  # fmt: skip
        self.launch(here, jobs)
        return folders


def pairs_of(folder: Path, first: int, last: int) -> Counter[int]:
    """How often each pair was trained on in some steps."""
    seen: Counter[int] = Counter()
    for file in folder.glob("pairs-*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            note = json.loads(line)
            if first <= note["step"] <= last:
                seen.update(note["pairs"])
    return seen


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def distance(moved: Path, whole: Path) -> tuple[float, float]:
    """The largest differences of a loss and of a weight."""
    mine, theirs = curve(moved), curve(whole)
    assert list(mine) == list(range(CUT + 1, STEPS + 1))
    after, expected = weights(moved), weights(whole)
    assert after.keys() == expected.keys()
    return (
        max(abs(loss - theirs[step]) for step, loss in mine.items()),
        max(float((after[name] - expected[name]).abs().max()) for name in expected),
    )


@pytest.fixture(scope="module")
def moves(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Moves]:
    """``moves(**settings)``: the runs with these settings, made once."""
    made: dict[str, Moves] = {}

    def get(**settings: Any) -> Moves:
        key = json.dumps(settings)
        if key not in made:
            made[key] = Moves(tiny_model_dir, tmp_path_factory.mktemp("moves"), **settings)
        return made[key]

    return get


def check(
    moves: Moves, sources: Sequence[Place], here: Place, near: float = NEAR, rounded: float = 0.0
) -> None:
    """Curve, weights and pairs of all moves to one place, beside the runs that did not move.

    rounded: by how much the files of a model are off.
    """
    for source, folder in moves.go_on(sources, here).items():
        losses, numbers = distance(folder, moves.whole(source))
        print(f"{name_of(source)} -> {name_of(here)}: loss {losses:.1e}, weights {numbers:.1e}")
        assert losses < near and numbers < near + rounded, (source, here, losses, numbers)
        assert_engine(folder, here[0].removesuffix("_offload"), here[1])
        seen = pairs_of(moves.whole(source), 1, CUT) + pairs_of(folder, CUT + 1, STEPS)
        assert seen == Counter(range(PAIRS)), (source, here)


@pytest.mark.parametrize(("here", "sources"), DOZEN, ids=[name_of(here) for here, _ in DOZEN])
def test_a_run_goes_on_anywhere(
    here: Place, sources: list[Place], moves: Callable[..., Moves]
) -> None:
    """From one process to several, to fewer, to more, from every kind of engine to every other."""
    check(moves(), sources, here)


def test_an_adapter_goes_on_anywhere(moves: Callable[..., Moves]) -> None:
    check(moves(peft=True), [("zero3", 3)], ("zero2", 2))


def test_in_bf16_the_weights_that_the_optimizer_keeps_move(moves: Callable[..., Moves]) -> None:
    """In fp32; the bf16 ones that compute would be off by a hundred times of a step's change."""
    runs = moves(mixed_precision="bf16")
    ulp = 2**-7  # DeepSpeed writes bf16, and the largest weights are near 1
    check(runs, [("zero2", 2), SINGLE], ("fsdp2", 2), NEAR_BF16, ulp)


@pytest.mark.parametrize(
    "preset", ["zero3", *(pytest.param(p, marks=pytest.mark.slow) for p in ("zero2", "fsdp2"))]
)
def test_the_best_model_comes_back_from_any_engine(
    preset: str, moves: Callable[..., Moves]
) -> None:
    """A rate so high that the model gets worse; the best one was saved by one process."""
    held_out = {"valid_data_path": str(DEMO / "eval.jsonl"), "eval_strategy": "steps"}
    always = {"save_steps": 1, "eval_steps": 1, "save_total_limit": None}
    runs = moves(lr=3.0, load_best_model_at_end=True, **always, **held_out)
    started = runs.whole(SINGLE)
    last = json.loads((started / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    best = last["best_global_step"]
    assert best < CUT
    folder = started.with_name(f"best-{preset}")
    source = str(started / f"checkpoint-{CUT}")
    runs.launch((preset, 2), [{"project_name": str(folder), "resume_from_checkpoint": source}])
    mine, theirs = weights(folder), weights(started / f"checkpoint-{best}")
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the first one makes all the runs that others go on from
@pytest.mark.parametrize("peft", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("here", ALL, ids=name_of)
def test_every_move(here: Place, peft: bool, moves: Callable[..., Moves]) -> None:
    check(moves(**({"peft": True} if peft else {})), ALL, here)
