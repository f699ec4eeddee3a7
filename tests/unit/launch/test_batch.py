"""Batch scripts: what is shipped, and what is written for a site."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist import UserError
from orpo_dist.cli import main
from orpo_dist.launch import presets
from orpo_dist.launch.batch import FOLDER, BatchJob, batch_script
from tests.conftest import ROOT


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_ray.sbatch"])
def test_dry_run_shows_what_would_run_without_slurm(script: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: m\ndata_path: [pairs.jsonl]\n")
    shown = subprocess.run(
        ["/bin/bash", str(ROOT / "launch" / script), "--dry-run", "train", "--config", str(config),
         "--project-name", "with space"],
        env={"PATH": "/usr/bin:/bin", "ORPO_PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
             "ORPO_PRESET": "zero3"},
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert "#SBATCH --signal=USR1@300" in shown
    assert "srun" in shown
    assert "'with space'" in shown
    assert list(tmp_path.iterdir()) == [config]  # and leaves nothing behind
    if script == "slurm.sbatch":
        assert '--machine-rank "$SLURM_NODEID"' in shown  # for the node to expand
        last = shown.splitlines()[-1]
        assert "--num_processes 16 --num_machines 2 --machine_rank 0" in last
        assert "ds_configs/zero3.json" in last


@pytest.mark.parametrize(("kind", "shipped"), [("train", "slurm"), ("ray", "slurm_ray")])
def test_what_is_shipped_is_what_the_template_makes(
    capsys: pytest.CaptureFixture[str], kind: str, shipped: str
) -> None:
    text = (FOLDER / f"{shipped}.sbatch").read_text(encoding="utf-8")
    assert batch_script(BatchJob(kind=kind)) == text
    assert (ROOT / "launch" / f"{shipped}.sbatch").read_text(encoding="utf-8") == text
    assert main(["slurm", "write", kind]) == 0
    assert capsys.readouterr().out == text
    assert "{%" not in text and "{{" not in text


def directives(script: str) -> dict[str, str]:
    lines = [line.split(maxsplit=1)[1] for line in script.splitlines() if line[:8] == "#SBATCH "]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_script_for_a_site(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    ready = tmp_path / "a b" / "activate"
    ready.parent.mkdir()
    ready.write_text("export READY='yes it is'\n")
    assert main([
        "slurm", "write", "--partition", "gpu,long", "--account", "lab-7", "--time", "2:00:00",
        "--nodes", "4", "--gpus-per-node", "0", "--cpus-per-task", "16", "--preset", "ddp",
        "--setup", f"source {shlex.quote(str(ready))}", "--setup", "export SEEN=\"$READY\"",
        "--setup", "export ORPO_JOB_DIR=\"/logs/$SEEN\"", "--output", str(script),
    ]) == 0  # fmt: skip
    assert capsys.readouterr().out.strip() == str(script)
    said = directives(script.read_text())
    assert (said["--partition"], said["--account"], said["--time"]) == ("gpu,long", "lab-7",
                                                                       "2:00:00")  # fmt: skip
    assert (said["--nodes"], said["--gpus-per-node"], said["--cpus-per-task"]) == ("4", "0", "16")
    shown = subprocess.run(
        ["/bin/bash", str(script), "--dry-run", "train", "--model", "m", "--data-path", "d"],
        env={"PATH": "/usr/bin:/bin", "ORPO_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert "ORPO_JOB_DIR=/logs/yes it is" in shown  # ran in order, before all that needs them
    assert "#SBATCH --partition=gpu,long" in shown
    assert "--num_processes 4 --num_machines 4" in shown


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--partition", ""], "partition: is empty; leave it out or give a value"),
        (["--account", "a b"], "account 'a b': is not a name as SLURM has them"),
        (["--partition", "a\n#SBATCH --uid=0"], "is not a name"),
        (["--time", "2h"], "time '2h': is not a limit as sbatch takes it"),
        (["--time", "\u0662:00:00"], "is not a limit"),
        (["--nodes", "0"], "nodes 0: must be at least 1"),
        (["--gpus-per-node", "-1"], "gpus_per_node -1: must be at least 0"),
        (["--preset", "zero9"], "unknown preset 'zero9': did you mean zero3?"),
        (["--setup", " "], "setup: is empty"),
        (["--setup", "a\nb"], "must be one line of text; give --setup once for each command"),
        (["--setup", "a \\"], "ends in a backslash"),
        (["--setup", "echo 'open"], "is not a whole command to bash"),
        (["--setup", "cat <<END"], "is not a whole command to bash"),
        (["--setup", "fi"], "is not a whole command to bash"),
        (["--output", "./no/where"], "its folder does not exist"),
        (["ray", "--preset", "ddp"], "preset: a Ray job has none"),
    ],
)
def test_what_cannot_stand_in_a_script_is_told(
    capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main(["slurm", "write", *flags]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and told in said.err


def test_all_mistakes_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--partition", "", "--account", "a b", "--time", "x", "--setup", "a\nb"]
    assert main(["slurm", "write", *words]) == 2
    said = capsys.readouterr().err
    assert all(f"{name} " in said or f"{name}:" in said for name in
               ("partition", "account", "time", "setup"))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=12), st.text("abc \t'\"\\$`#&|;(){}<>\n", min_size=1, max_size=12))
def test_no_value_gets_out_of_its_line(name: str, command: str) -> None:
    """Whatever is accepted: every other line is as it was, and bash can read the whole."""
    plain = batch_script(BatchJob(partition="P", setup=(":",))).splitlines()
    try:
        script = batch_script(BatchJob(partition=name or "P", setup=(command,)))
    except UserError:
        return
    lines = script.split("\n")[:-1]
    assert len(lines) == len(plain)
    changed = [line for line, before in zip(lines, plain, strict=True) if line != before]
    assert set(changed) <= {f"#SBATCH --partition={name}", command}
    read = subprocess.run(["/bin/bash", "-n"], input=script, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("preset", presets.names())
def test_every_preset_stands_before_its_comment(preset: str) -> None:
    (line,) = [one for one in batch_script(BatchJob(preset=preset)).splitlines()
               if "ORPO_PRESET=" in one and one.startswith("export")]  # fmt: skip
    shown = subprocess.run(["/bin/bash", "-c", f"{line}\necho $ORPO_PRESET"], env={},
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert shown.stdout.strip() == preset
