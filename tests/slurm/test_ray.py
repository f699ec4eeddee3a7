"""Ray on two SLURM nodes through the shipped batch script; the driver's exit code is the job's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.conftest import Submit

DRIVER = """
import socket, sys, time
import ray

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(1)
    return socket.gethostname()

ray.init()
print("ran on", *sorted(set(ray.get([where.remote() for _ in range(4)]))))
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [7, pytest.param(0, marks=pytest.mark.slow)])
def test_the_driver_s_exit_code(submit: Submit, tmp_path: Path, code: int) -> None:
    pytest.importorskip("ray")
    (tmp_path / "driver.py").write_text(DRIVER)
    job = submit("slurm_ray.sbatch", "driver.py", str(code), flags=("--cpus-per-task=2",))
    ended = job.wait()
    assert (ended["ExitCode"], ended["Restarts"]) == (f"{code}:0", "0"), job.logs()
    assert "ran on node1 node2" in job.log(0, "driver")
    assert (job.job_folder / "DONE").exists() == (code == 0)
    assert (job.job_folder / "ray-token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_ray_node_that_does_not_start_fails_the_job(submit: Submit, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    (tmp_path / "driver.py").write_text(DRIVER)
    job = submit("slurm_ray.sbatch", "driver.py", "0", flags=("--hold",))
    folder = str(Path(ray.__file__).parent)
    job.cluster.inside("node2", "mount", "-t", "tmpfs", "tmpfs", folder)  # as if not installed
    try:
        job.cluster.client("scontrol", "release", job.id)
        assert job.wait()["ExitCode"] == "1:0", job.logs()
    finally:
        job.cluster.inside("node2", "umount", folder)
    assert not job.log(0, "driver")
