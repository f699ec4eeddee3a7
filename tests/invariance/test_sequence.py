"""Several ranks share each sequence, and nothing changes: the same curve, the same weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.launching import (
    assert_engine,
    curve,
    finish,
    in_one_launch,
    launched,
    run,
    start,
    training,
)

RELATIVE = 1e-5
SAVES = ["--save-strategy", "steps", "--save-steps", "5"]
SHARED = Path(__file__).parent / "shared.py"
METRICS = ("loss/orpo", "grad_norm", "logps/margins", "rewards/accuracies", "eval/loss")


def words(model: Path, folder: Path, *flags: str) -> list[str]:
    return training(
        model, folder, "--max-steps", "10", "--valid-data-path", str(DEMO / "eval.jsonl"),
        "--eval-strategy", "steps", "--eval-steps", "5", *flags,
    )  # fmt: skip


def on(preset: str, processes: int) -> list[str]:
    return launched(preset, "--num-processes", str(processes))


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    run([sys.executable, "-m", "orpo_dist", *words(tiny_model_dir, folder, *SAVES)])
    assert len(curve(folder)) == 10
    return folder


def assert_same(mine: Path, theirs: Path, bound: float = RELATIVE) -> None:
    for metric in METRICS:
        assert curve(mine, metric) == pytest.approx(curve(theirs, metric), rel=bound, abs=1e-6), (
            metric
        )
    found, expected = (load_file(folder / "model.safetensors") for folder in (mine, theirs))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-5, name


@pytest.mark.parametrize(
    ("preset", "processes", "size", "flags"),
    [
        pytest.param("ddp", 2, 2, [], marks=pytest.mark.slow),  # as the one with all settings
        ("ddp", 4, 4, ["--gradient-checkpointing", "keep_attention"]),
        ("ddp", 4, 2, ["--batch-size", "1", "--gradient-checkpointing", "every:2"]),
        ("zero3", 2, 2, []),
        ("fsdp2", 2, 2, ["--gradient-checkpointing"]),
    ],
    ids=["ddp-2", "ddp-4", "ddp-2x2", "zero3-2", "fsdp2-2"],
)
def test_shared_sequences_train_alike(
    preset: str,
    processes: int,
    size: int,
    flags: list[str],
    reference: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    shared = ["--sequence-parallel", str(size)]
    errors = run([*on(preset, processes), *words(tiny_model_dir, tmp_path, *shared, *flags)])
    assert f"on {processes} processes, {size} to a sequence" in errors
    assert_engine(tmp_path, preset, processes)
    assert_same(tmp_path, reference)


FAMILIES = (
    "llama", "odd heads", "crossing groups", "one head", "dynamic", "gpt_oss", "gemma2",
    "gemma3_text", "qwen3_moe", "deepseek_v3", "phi3", "cohere2",
)  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3])
def test_families_score_alike(ranks: int, tmp_path: Path) -> None:
    """Windows, soft caps, sinks, ropes by length, latent attention, experts and their router loss;
    heads that the ranks do not divide, and fewer heads than ranks."""
    out = tmp_path / "found.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run([*torchrun, "--nproc-per-node", str(ranks), str(SHARED), str(out), *FAMILIES, "mamba"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert "attention packed" in found.pop("mamba")
    assert list(found) == list(FAMILIES)
    for name, off in found.items():
        assert max(off["scores"], off["gradient"], off["router"]) < 1e-5, (name, off)


@pytest.mark.parametrize(("preset", "size"), [("single", 1), ("fsdp2", 2)])
def test_a_run_goes_on_with_other_groups(
    preset: str, size: int, reference: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """From shared sequences to one process, and from that to shared ones."""
    folder = tmp_path / "run"
    shared = ["--sequence-parallel", "2", *SAVES]
    if size == 1:
        run([*on("ddp", 2), *words(tiny_model_dir, folder, *shared)])
    else:
        shutil.copytree(reference, folder)
    shutil.rmtree(folder / "checkpoint-10")
    (folder / "model.safetensors").unlink()
    resumed = ["--sequence-parallel", str(size), *SAVES, "--resume-from-checkpoint", "auto"]
    errors = run([*on(preset, size), *words(tiny_model_dir, folder, *resumed)])
    assert f"sequence_parallel {3 - size} → {size}" in errors
    assert_same(folder, reference)


@pytest.mark.parametrize(
    ("processes", "flags", "said"),
    [
        (2, ["--sequence-parallel", "3"],
         "sequence_parallel 3: 2 processes cannot be cut into groups of 3; use 2"),
        (2, ["--sequence-parallel", "2", "--attention", "padded"],
         "sequence_parallel 2 shares packed sequences, of which attention padded has none"),
        (2, ["--sequence-parallel", "0"],
         "sequence_parallel: must be auto or a number of processes"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(
    processes: int, flags: list[str], said: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    code, _, errors = finish(
        start([*on("ddp", processes), *words(tiny_model_dir, tmp_path, *flags)])
    )
    assert code == 2 and said in errors and "Traceback" not in errors, errors


def test_whatever_a_run_asks_for_besides(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Adapters, loaders in processes, stages, margins under the base model, categories, prompts
    that count: all as on one process."""
    rows = [json.loads(line) for line in (DEMO / "train.jsonl").read_text("utf-8").splitlines()]
    data = tmp_path / "pairs.jsonl"
    tagged = [{**row, "category": "ab"[number % 2]} for number, row in enumerate(rows[:40])]
    data.write_text("\n".join(map(json.dumps, tagged)), encoding="utf-8")
    common = {
        "model": str(tiny_model_dir), "data_path": str(data), "valid_data_path": str(data),
        "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "global_batch_size": 8,
        "batch_size": 2, "logging_steps": 1, "log": "none", "lr": 1e-3, "save_strategy": "no",
    }  # fmt: skip
    asked: dict[str, dict[str, Any]] = {
        "adapter": {"peft": True, "trainer_args": {"dataloader_num_workers": 1}, "lr": 1e-2},
        "prompts": {"nll_scope": "prompt_and_completion", "orpo_alpha_schedule": "linear"},
        "stages": {"stages": [{"lr": 1e-3}, {"curriculum": "margin", "orpo_alpha": 0.5}]},
    }
    for preset, processes, size in (("single", 1, 1), ("ddp", 2, 2)):
        jobs = [
            {
                **common,
                **more,
                "sequence_parallel": size,
                "project_name": str(tmp_path / preset / n),
            }
            for n, more in asked.items()
        ]
        in_one_launch(preset, processes, jobs, tmp_path)
    names = (*METRICS, "rewards/accuracies/a", "eval/logps/margins/b", "loss/sft/b")
    for case in asked:
        for metric in names:
            found, expected = (curve(tmp_path / p / case, metric) for p in ("ddp", "single"))
            assert expected, metric
            assert found == pytest.approx(expected, rel=RELATIVE, abs=1e-6), (case, metric)
