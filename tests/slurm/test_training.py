"""Trainings through the shipped batch script, on a real SLURM: to the end, whatever happens."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import Submit, SubmittedJob, Training

ONE = ("--nodes=1",)
SINGLE = {"ORPO_PRESET": "single"}


def test_two_nodes_train_with_zero_2(submit: Submit, training: Training) -> None:
    job = submit("slurm.sbatch", *training.command(6), ORPO_PREFLIGHT="120")
    ended = job.wait()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.logs()
    assert "preflight: fit are node1, node2" in job.output
    assert "zero2 on 2 processes" in job.log(0)
    parts = (training.run / "run" / "checkpoint-6" / "optimizer").glob("rank-*.safetensors")
    assert len(list(parts)) == 2  # the optimizer's state really is cut in two
    assert (job.job_folder / "attempt-0" / "node2.log").exists()
    assert job.records("end")[0]["codes"] == {"0": 0, "1": 0}
    assert training.steps() == list(range(1, 7))
    assert (job.job_folder / "DONE").exists()


def test_usr1_and_a_killed_node_cost_a_requeue_each(submit: Submit, training: Training) -> None:
    """Two nodes, ZeRO-2: the signal of the time limit first, then a crash of the second node."""
    job = submit("slurm.sbatch", *training.command(80))
    job.until(lambda: training.saved() >= 5)
    job.signal("USR1")
    job.until(lambda: job.show()["Restarts"] == "1")
    stopped = training.saved()
    assert job.records("end")[0]["code"] == 85
    assert job.records("end")[0]["step_now"] == stopped > 5
    job.until(lambda: training.saved() > stopped)
    job.cluster.kill_node("node2")
    job.until(lambda: job.show()["Restarts"] == "2", seconds=60)
    killed = training.saved()
    job.cluster.start_node("node2")
    assert job.wait()["ExitCode"] == "0:0", job.logs()
    assert [line["step"] for line in job.records("begin")] == [0, stopped, killed]
    assert training.steps() == list(range(1, 81))  # went on where it stood, nothing twice
    assert len(list(job.job_folder.glob("attempt-?/node1.log"))) == 3
    assert training.status() == "completed"


def test_preempted_with_a_grace_time_it_saves_and_comes_back(
    submit: Submit, training: Training
) -> None:
    """SLURM itself does not requeue a job that ends within its grace time."""
    job = submit("slurm.sbatch", *training.command(300), flags=ONE, **SINGLE)
    job.until(lambda: training.saved() >= 5)
    job.cluster.client(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap",
        "sleep 1",
    )  # fmt: skip
    assert job.wait()["Restarts"] == "1", job.logs()
    first = job.records("end")[0]
    assert (first["cause"], first["status"], first["code"]) == ("preempted", 130, 85)
    assert training.steps() == list(range(1, 301))


def test_a_mistake_is_not_requeued(submit: Submit, training: Training) -> None:
    command = training.command(6)
    command[command.index("--data-path") + 1] = "no-such-file.jsonl"
    job = submit("slurm.sbatch", *command, flags=ONE, **SINGLE)
    ended = job.wait()
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0"), job.logs()
    assert "no-such-file.jsonl" in job.output
    assert "a mistake in the command" in job.output


def test_a_mistake_in_the_settings_starts_nothing(submit: Submit, training: Training) -> None:
    job = submit("slurm.sbatch", *training.command(6, "--lr", "fast"), flags=ONE)
    assert job.wait()["ExitCode"] == "2:0"
    assert "lr: " in job.output
    assert not job.log(0)


def test_the_requeue_cap(submit: Submit, training: Training) -> None:
    job = submit("slurm.sbatch", *training.command(300), flags=ONE, ORPO_MAX_REQUEUES="0", **SINGLE)
    job.until(lambda: training.saved() >= 5)
    job.signal("USR1")
    ended = job.wait()
    assert (ended["ExitCode"], ended["Restarts"]) == ("3:0", "0"), job.logs()
    assert "ORPO_MAX_REQUEUES" in job.output


def test_crashes_without_progress_stop(submit: Submit, training: Training) -> None:
    """Killed after a checkpoint it goes on; killed before the next one it stays down."""
    job = submit("slurm.sbatch", *training.command(300), flags=ONE, **SINGLE)
    job.until(lambda: training.saved() >= 5)
    job.kill_step()
    job.until(lambda: job.log(1))
    job.kill_step()
    ended = job.wait()
    assert (ended["ExitCode"], ended["Restarts"]) == ("137:0", "1"), job.logs()
    assert re.search(r"no checkpoint beyond step \d+ was saved", job.output)


def test_a_cancelled_job_stays_cancelled(submit: Submit, training: Training) -> None:
    """A batch script outlives scancel by seconds, and could requeue the job from the dead."""
    job = submit("slurm.sbatch", *training.command(300), flags=ONE, **SINGLE)
    job.until(lambda: training.saved() >= 5)
    job.cluster.client("scancel", job.id)
    job.until(lambda: job.show()["JobState"] == "CANCELLED")
    assert job.records("end")[0]["cause"] == "cancelled", job.logs()
    assert job.show()["Restarts"] == "0"


def test_an_array_requeues_only_the_task_that_was_stopped(
    submit: Submit, training: Training
) -> None:
    array = submit(
        "slurm.sbatch", *training.command(300, name="%a"), flags=(*ONE, "--array=1-2"), **SINGLE
    )
    tasks = [SubmittedJob(array.cluster, f"{array.id}_{n}", array.folder) for n in (1, 2)]
    for number in ("1", "2"):
        tasks[0].until(lambda number=number: training.saved(number) >= 5)
    # the task whose own id is the array's: 'scontrol requeue' of that number takes all of them
    (stopped,) = [task for task in tasks if task.show()["JobId"] == array.id]
    stopped.signal("USR1")
    for task in tasks:
        assert task.wait()["Restarts"] == str(int(task is stopped)), task.logs()
    assert all(training.steps(number) == list(range(1, 301)) for number in ("1", "2"))


# Loaded by Python itself: rank 0 stands still as soon as the checkpoint of step 10 begins to exist.
STOPS_IN_A_SAVE = """
import glob, os, signal, threading, time

def watch():
    while not glob.glob(os.environ["SAVING"]):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGSTOP)

first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
if os.environ.get("RANK") == "0" and first and "SAVING" in os.environ:
    threading.Thread(target=watch, daemon=True).start()
"""


@pytest.mark.slow
def test_a_node_that_dies_in_a_save_and_a_requeue_onto_the_other(
    submit: Submit, training: Training
) -> None:
    """The node of rank 0, which holds the lock of the run folder and writes the checkpoint."""
    (training.run / "sitecustomize.py").write_text(STOPS_IN_A_SAVE)
    run = training.run / "run"
    job = submit(
        "slurm.sbatch", *training.command(20), ORPO_PRESET="ddp",
        SAVING=str(run / ".saving" / "checkpoint-10*"), PYTHONPATH=f"{training.run}:{ROOT}",
    )  # fmt: skip
    job.until(lambda: list(run.glob(".saving/checkpoint-10*")), seconds=180)
    assert training.saved() == 5
    job.cluster.kill_node("node1")
    job.until(lambda: job.show()["Restarts"] == "1")
    assert training.saved() == 5
    fewer = ("NumNodes=1-1", "NumTasks=1", "NumCPUs=1")
    job.cluster.client("scontrol", "update", f"JobId={job.id}", *fewer)
    assert job.wait(300)["ExitCode"] == "0:0", job.logs()
    assert [(line["step"], line["nodes"]) for line in job.records("begin")] == [
        (0, "node[1-2]"),
        (5, "node2"),
    ]
    assert "the lock of process " in job.log(1, "node2")
    assert "ddp on 2 processes" in job.log(0) and "single on 1 process" in job.log(1, "node2")
    losses = [
        re.findall(r"train 10/20  loss (\S+)", log) for log in (job.log(0), job.log(1, "node2"))
    ]
    assert losses[0] == losses[1] != []
    assert training.steps() == list(range(1, 21))  # went on where it stood, in the same batches
    assert training.status() == "completed"


@pytest.mark.slow
def test_the_timer_of_the_time_limit(submit: Submit, training: Training) -> None:
    """The signal as SLURM itself sends it, a minute or less before the end."""
    job = submit(
        "slurm.sbatch", *training.command(20000, "--save-steps", "100000"),
        flags=(*ONE, "--time=2", "--signal=USR1@30"), **SINGLE,
    )  # fmt: skip
    job.until(lambda: job.show()["Restarts"] == "1", seconds=150)
    assert job.records("end")[0]["code"] == 85, job.logs()
    assert training.saved() > 0


@pytest.mark.slow
def test_the_time_limit_itself(submit: Submit, training: Training) -> None:
    """No signal ahead of it: what SIGTERM and KillWait leave time for is kept."""
    job = submit(
        "slurm.sbatch", *training.command(20000, "--save-steps", "100000"),
        flags=(*ONE, "--time=1", "--signal=CONT@1"), **SINGLE,
    )  # fmt: skip
    job.until(lambda: job.show()["Restarts"] == "1", seconds=150)
    assert job.records("end")[0]["cause"] == "time limit", job.logs()
    assert job.records("end")[0]["step_now"] == training.saved() > 0


@pytest.mark.slow
def test_a_chain_of_jobs_where_requeueing_is_forbidden(submit: Submit, training: Training) -> None:
    command = training.command(300, "--resume-from-checkpoint", "auto")
    flags = (*ONE, "--no-requeue", "--job-name=orpo", "--dependency=singleton")
    shared = {**SINGLE, "ORPO_JOB_DIR": str(training.run / "chain")}
    first, second, third = (
        submit("slurm.sbatch", *command, flags=flags, **shared) for _ in range(3)
    )
    first.until(lambda: training.saved() >= 5)
    first.signal("USR1")
    assert first.wait()["ExitCode"] == "85:0", first.logs()
    assert "submit it again" in first.output
    assert second.wait()["ExitCode"] == "0:0", second.logs()
    assert third.wait()["ExitCode"] == "0:0", third.logs()
    assert "done already" in third.output
    assert training.steps() == list(range(1, 301))
