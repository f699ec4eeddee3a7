"""One cluster for the session, and jobs of tiny real trainings to submit to it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_dist.runs.folder import read_metrics
from tests.conftest import DEMO, ROOT
from tests.slurm.cluster import Cluster, Unavailable, install

LAUNCH = ROOT / "launch"


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    # not below pytest's own folder, which other users (munge) may not enter
    folder = Path(tempfile.mkdtemp(prefix="orpo-slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        install()
        cluster.start()
        yield cluster
    except Unavailable as reason:
        pytest.skip(f"no SLURM here: {reason}")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, idle and whole before and after."""
    yield running_cluster
    running_cluster.client("scancel", "--user=root")
    running_cluster.revive()


class SubmittedJob:
    """A job in the queue or behind it."""

    def __init__(self, cluster: Cluster, job: str, folder: Path, name: str = "orpo"):
        self.cluster, self.id, self.folder, self.name = cluster, job, folder, name

    def show(self) -> dict[str, str]:
        shown = self.cluster.client("scontrol", "show", "job", "-o", self.id)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def ended(self) -> bool:
        return self.show()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

    def wait(self, seconds: float = 90) -> dict[str, str]:
        """Until the job has ended for good; its fields."""
        self.until(self.ended, seconds)
        return self.show()

    def until(self, happened: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            over = self.ended() and not happened()
            assert not over, f"the job is over\n{self.logs()}"
            assert time.monotonic() < deadline, f"{self.show()}\n{self.logs()}"
            time.sleep(0.2)

    def signal(self, name: str) -> None:
        """To the steps, as the timer of --signal does."""
        self.cluster.client("scancel", f"--signal={name}", self.id)

    def kill_step(self) -> None:
        """Kills training and its launcher, as a lack of memory would; the batch script goes on."""
        steps = self.cluster.client("squeue", "--steps", "-h", "-o", "%i", f"--job={self.id}")
        (step,) = [step for step in steps.split() if step.rpartition(".")[2].isdigit()]
        self.cluster.client("scancel", "--signal=KILL", step)

    @property
    def output(self) -> str:
        path = self.folder / f"{self.name}-{self.show()['JobId']}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def job_folder(self) -> Path:
        return self.folder / f"slurm-{self.id}"

    def log(self, attempt: int, node: str = "node1") -> str:
        path = self.job_folder / f"attempt-{attempt}" / f"{node}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        logs = sorted(self.job_folder.glob("attempt-*/*.log"))
        return self.output + "".join(f"\n--- {p}\n{p.read_text(errors='replace')}" for p in logs)

    def records(self, event: str) -> list[dict[str, Any]]:
        lines = (self.job_folder / "attempts.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


Submit = Callable[..., SubmittedJob]


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    """``submit(script, *command, flags=[...], **environment)``, in ``tmp_path``."""

    def run(
        script: str, *command: str, flags: tuple[str, ...] = (), **environment: str
    ) -> SubmittedJob:
        settings = {
            "PYTHONPATH": str(ROOT), "ORPO_PYTHON": sys.executable, "ORPO_PREFLIGHT": "0",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
            "ORPO_DIST_CACHE": str(tmp_path / "cache"), **environment,
        }  # fmt: skip
        said = cluster.client(
            "sbatch", "--parsable", f"--chdir={tmp_path}", "--gpus-per-node=0",
            "--cpus-per-task=1", "--time=20", *flags, str(LAUNCH / script), *command, **settings,
        )  # fmt: skip
        name = "orpo-ray" if "ray" in script else "orpo"
        return SubmittedJob(cluster, said.strip(), tmp_path, name)

    return run


class Training:
    """A tiny training to submit, and what it has left so far."""

    def __init__(self, model: Path, folder: Path):
        self.model, self.run = model, folder

    def command(self, steps: int, *flags: str, name: str = "run") -> list[str]:
        return [
            "train", "--model", str(self.model), "--data-path", str(DEMO / "train.jsonl"),
            "--project-name", str(self.run / name), "--batch-size", "2",
            "--gradient-accumulation", "1", "--lr", "1e-3", "--logging-steps", "1",
            "--max-steps", str(steps), "--save-strategy", "steps", "--save-steps", "5", *flags,
        ]  # fmt: skip

    def saved(self, name: str = "run") -> int:
        """Step of the newest complete checkpoint."""
        from orpo_dist.runs.folder import newest_checkpoint

        checkpoint = newest_checkpoint(self.run / name)
        return int(checkpoint.name.split("-")[1]) if checkpoint else 0

    def steps(self, name: str = "run") -> list[int]:
        return [int(line["step"]) for line in read_metrics(self.run / name / "metrics.jsonl")]

    def status(self, name: str = "run") -> str:
        return str(json.loads((self.run / name / "run.json").read_text())["status"])


@pytest.fixture
def training(tiny_model_dir: Path, tmp_path: Path) -> Training:
    return Training(tiny_model_dir, tmp_path)
