"""Presets, their files, and the command that ``orpo-dist launch`` ends in."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_dist.base.types import UserError
from orpo_dist.cli import main
from orpo_dist.engines.engine import HYPERPARAMETERS, Engine, deepspeed_engine, engine_of
from orpo_dist.launch import gpus, presets
from orpo_dist.launch.accelerate import preset_environment
from orpo_dist.launch.argv import Launch
from orpo_dist.launch.machine import free_port
from tests.conftest import ROOT

NAMES = [
    "ddp", "fsdp2", "single", "zero1", "zero2", "zero2_offload", "zero3", "zero3_nvme",
    "zero3_offload",
]  # fmt: skip
TOPOLOGY = {
    "distributed_type", "num_processes", "num_machines", "machine_rank", "deepspeed_config",
    "fsdp_config",
}  # fmt: skip
TRAIN = ["--", "train", "--model", "m", "--data-path", "d.jsonl"]


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a launch is refused with."""
    assert main(["launch", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    return told.err.removeprefix("orpo-dist: error: ").strip()


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, str], list[str]]:
    """Environment and argument list that a dry run prints."""
    assert main(["launch", *words]) == 0
    parts = shlex.split(capsys.readouterr().out)
    at = parts.index(sys.executable)
    return dict(part.split("=", 1) for part in parts[:at]), parts[at:]


@pytest.mark.parametrize("name", NAMES)
def test_presets_hold_topology_only_and_lie_in_the_clone(name: str) -> None:
    preset = presets.find(name)
    assert presets.names() == NAMES
    content = yaml.safe_load(preset.path.read_text())
    assert content.keys() <= TOPOLOGY
    assert (ROOT / "launch" / f"{name}.yaml").read_text() == preset.path.read_text()
    if preset.deepspeed is not None:
        named = content["deepspeed_config"]["deepspeed_config_file"]
        assert (ROOT / named).read_text() == preset.deepspeed.read_text()
        settings = json.loads(preset.deepspeed.read_text())
        for key in HYPERPARAMETERS:
            first, _, second = key.partition(".")
            value = settings.get(first, "auto")
            assert (value[second] if second else value) == "auto"
    assert preset.engine.name == name.partition("_")[0]
    assert preset.engine.offload == {"offload": "cpu", "nvme": "nvme"}.get(
        name.partition("_")[2], "none"
    )


def test_the_wheel_holds_the_presets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for name in NAMES:
        assert f"orpo_dist/launch/presets/{name}.yaml" in names
    for path in (ROOT / "ds_configs").glob("*.json"):
        assert f"orpo_dist/launch/ds_configs/{path.name}" in names
    package = ROOT / "orpo_dist"
    for kind in ("html", "css", "js", "jinja", "sbatch"):  # pages, and the batch scripts
        for path in package.rglob(f"*.{kind}"):
            assert str(path.relative_to(ROOT)) in names
    shipped = package / "sweeps" / "presets"
    for path in shipped.rglob("*.*"):
        assert f"orpo_dist/sweeps/presets/{path.relative_to(shipped)}" in names


def test_a_dry_run_prints_what_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = ["zero2", "--num-processes", "4", "--num-machines", "2", "--machine-rank", "1"]
    words += ["--main-process-ip", "10.0.0.1", "--rdzv-id", "job-7", "--dry-run", *TRAIN]
    environment, argv = dry(capsys, *words, "--project-name", "a b")
    assert environment.keys() == {"OMP_NUM_THREADS", "PET_RDZV_ID"}  # torch says if GPUs are there
    assert environment["PET_RDZV_ID"] == "job-7"
    at = argv.index("-m", 4)
    assert argv[at:] == ["-m", "orpo_dist", *TRAIN[1:], "--project-name", "a b"]
    options = dict(zip(argv[4:at:2], argv[5:at:2], strict=True))
    assert options["--num_processes"] == "4" and options["--machine_rank"] == "1"
    assert (options["--main_process_ip"], options["--main_process_port"]) == ("10.0.0.1", "29500")
    assert Path(options["--config_file"]).is_file()
    assert Path(options["--deepspeed_config_file"]).name == "zero2.json"


def test_processes_default_to_the_gpus_of_all_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(gpus, "existing_gpus", lambda: ["", "", "", ""])
    words = ["ddp", "--num-machines", "2", "--main-process-ip", "h", "--dry-run", *TRAIN]
    _, argv = dry(capsys, *words)
    assert argv[argv.index("--num_processes") + 1] == "6"
    _, argv = dry(capsys, "single", "--dry-run", *TRAIN)
    assert argv[argv.index("--num_processes") + 1] == "1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["zero9", *TRAIN], "unknown preset 'zero9': did you mean zero3?"),
        (["ddp", *TRAIN], "num-processes is missing"),
        (["ddp", "--num-processes", "3", "--num-machines", "2", "--main-process-ip", "h", *TRAIN],
         "num-processes 3: is not divisible by 2 machines"),
        (["ddp", "--num-processes", "0", *TRAIN], "must be at least 1"),
        (["ddp", "--num-processes", "2", "--num-machines", "2", *TRAIN],
         "main-process-ip is missing"),
        (["ddp", "--num-processes", "2", "--machine-rank", "1", *TRAIN],
         "machine-rank 1: with 1 machine it must be between 0 and 0"),
        (["single", "--num-processes", "2", *TRAIN], "preset single is one process"),
        (["ddp", "--num-processes", "2"], "launch needs 'train ...' or 'evaluate ...' after --"),
        (["ddp", "--num-processes", "2", "--", "generate", "m"], "launch needs 'train ...'"),
        (["zero2", "--num-processes", "2", "--", "evaluate", "m"], "use ddp"),
        (["ddp", "--num-processes", "2", *TRAIN, "--beta", "1"], "here it is called --orpo-alpha"),
        (["zero3", "--num-processes", "2", *TRAIN, "--peft", "--quantization", "int8"],
         "zero3 cannot shard int8 weights; use int4"),
        (["fsdp2", "--num-processes", "2", *TRAIN, "--optimizer", "adafactor"],
         "optimizer adafactor: does not work on the shards of fsdp2"),
        (["zero2_offload", "--num-processes", "2", *TRAIN, "--optimizer", "sgd"],
         "optimizer sgd: DeepSpeed cannot offload it"),
        (["zero3_nvme", "--num-processes", "2", *TRAIN], "nvme-path is missing"),
        (["ddp", "--num-processes", "2", "--deepspeed-config", "x.json", *TRAIN],
         "the preset ddp is not DeepSpeed"),
        (["zero2", "--num-processes", "2", "--deepspeed-config", "x.json", *TRAIN],
         "DeepSpeed file"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(capsys, *words)


def test_more_processes_than_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "existing_gpus", lambda: ["", "", "", ""])
    told = refusal(capsys, "zero2", "--num-processes", "4", *TRAIN)
    assert told.startswith("num-processes 4: that is 4 on this machine, which has 2 GPUs")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"zero_optimization": {"stage": 3}}, "says zero3, but the preset is zero2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
         "says zero2 with cpu offload, but the preset is zero2"),
        ({"gradient_accumulation_steps": 4}, "sets gradient_accumulation_steps"),
        ({"bf16": {"enabled": True}}, "sets bf16.enabled"),
        ({"optimizer": {"type": "Adam"}}, "sets optimizer"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage is 7"),
        ({"zero_optimization": None}, "has no zero_optimization section"),
    ],
)  # fmt: skip
def test_a_deepspeed_file_that_contradicts(
    changes: dict[str, object], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **changes}))
    words = ["zero2", "--num-processes", "2", "--deepspeed-config", str(path), *TRAIN]
    assert sentence in refusal(capsys, *words)


def test_a_first_machine_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ddp", "--num-processes", "2", "--num-machines", "2", "--patience", "0.2"]
    other = [*words, "--machine-rank", "1", "--main-process-port", str(free_port())]
    told = refusal(capsys, *other, "--main-process-ip", "127.0.0.1", *TRAIN)
    assert "the first machine does not answer on port" in told
    told = refusal(capsys, *other, "--main-process-ip", "no.such.host.invalid", *TRAIN)
    assert "is no known host" in told
    told = refusal(capsys, *words, "--main-process-ip", "192.0.2.1", *TRAIN)
    assert "machine rank 0 cannot listen there" in told


def test_ports_are_free_and_below_the_ephemeral_range() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 15 and max(ports) < 32768
    with socket.socket() as probe:
        probe.bind(("", ports.pop()))


def test_the_environment_says_which_engine(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}
    assert engine_of({}) == engine_of({"WORLD_SIZE": "1"}) == Engine("single")
    assert engine_of({"WORLD_SIZE": "2"}) == Engine("ddp")
    assert engine_of(zero) == Engine("zero1")
    assert engine_of(fsdp) == Engine("fsdp2", "cpu")
    with pytest.raises(UserError, match="FSDP version 1"):
        engine_of({**fsdp, "FSDP_VERSION": "1"})
    with pytest.raises(UserError, match="needs a deepspeed_config_file"):
        engine_of({"ACCELERATE_USE_DEEPSPEED": "true"})
    offload = {"stage": 3, "offload_param": {"device": "nvme"}, "offload_optimizer": None}
    assert deepspeed_engine({"zero_optimization": offload}) == Engine("zero3", "nvme")


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_of_a_preset_asks_for_its_engine(name: str) -> None:
    """For workers that another launcher starts, as Ray does for sweeps."""
    preset = presets.find(name)
    environment = {**preset_environment(preset), "WORLD_SIZE": "2"}
    wanted = "ddp" if preset.engine.name == "single" else preset.engine.name
    assert engine_of(environment).name == wanted


EARLY = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def test_signals_wait_until_the_launcher_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment in which this process is replaced on; a mask outlives that."""
    masks: list[set[signal.Signals]] = []

    def replaced(*_: Any) -> None:
        masks.append({s for s in signal.pthread_sigmask(signal.SIG_BLOCK, []) if s in EARLY})

    monkeypatch.setattr(os, "execve", replaced)
    try:
        Launch([sys.executable]).run()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
    assert masks == [EARLY]
