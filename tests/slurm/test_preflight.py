"""The preflight on real nodes that are bad in the ways nodes are bad: it names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.conftest import Submit, SubmittedJob, Training

LIMIT = {"ORPO_PREFLIGHT": "30"}


def failed(job: SubmittedJob) -> str:
    ended = job.wait()
    assert (ended["ExitCode"], ended["Restarts"]) == ("4:0", "0"), job.logs()
    assert not job.log(0)  # training was not started
    return job.output


def test_a_node_without_the_shared_folder(
    submit: Submit, training: Training, tmp_path: Path
) -> None:
    job = submit("slurm.sbatch", *training.command(5), flags=("--hold",), **LIMIT)
    job.cluster.inside("node2", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    try:
        job.cluster.client("scontrol", "release", job.id)
        said = failed(job)
    finally:
        job.cluster.inside("node2", "umount", str(tmp_path))
    assert "node2: shared folder: does not share" in said
    assert "sbatch --exclude=node2 ..." in said


def test_a_node_whose_name_is_loopback_to_itself(
    submit: Submit, training: Training, tmp_path: Path
) -> None:
    """As Debian's installer leaves it: gloo hands the others 127.0.1.1 to connect to."""
    job = submit("slurm.sbatch", *training.command(5), flags=("--hold",), **LIMIT)
    hosts = tmp_path / "hosts"
    known = (job.cluster.folder / "hosts").read_text()
    hosts.write_text(known.replace("198.51.100.2 node2", "127.0.1.1 node2"))
    job.cluster.inside("node2", "mount", "--bind", str(hosts), "/etc/hosts")
    try:
        job.cluster.client("scontrol", "release", job.id)
        said = failed(job)
    finally:
        job.cluster.inside("node2", "umount", "/etc/hosts")
    assert "node2: all-reduce: " in said
    assert "its host name is 127.0.1.1 to itself" in said
    assert "sbatch --exclude=node2 ..." in said


def test_gpus_that_are_not_there(submit: Submit, training: Training) -> None:
    """SLURM hands out two devices a node here, and CUDA finds none of them."""
    job = submit("slurm.sbatch", *training.command(5), flags=("--gpus-per-node=2",), **LIMIT)
    said = failed(job)
    assert "node1: gpus: sees 0 of 2 GPUs" in said
    assert "node2: gpus: sees 0 of 2 GPUs" in said
    assert "no node is fit" in said


@pytest.mark.slow
def test_a_node_that_does_not_answer(submit: Submit, training: Training) -> None:
    """Up for the controller, out of reach for the first node."""
    job = submit("slurm.sbatch", *training.command(5), flags=("--hold",), ORPO_PREFLIGHT="30")
    job.cluster.inside("node2", "ip", "route", "add", "blackhole", "198.51.100.1/32")
    try:
        job.cluster.client("scontrol", "release", job.id)
        said = failed(job)
    finally:
        job.cluster.inside("node2", "ip", "route", "del", "blackhole", "198.51.100.1/32")
    assert "node2: does not answer" in said
    assert "sbatch --exclude=node2 ..." in said
