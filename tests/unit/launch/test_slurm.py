"""What a SLURM job decides between attempts, and how bad nodes are told from good ones."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orpo_dist import ORPOConfig, UserError
from orpo_dist.base.exits import recorded, recorded_codes
from orpo_dist.launch.slurm import Attempt, GaveUp, Job, begin, cause_of, decide, end, first_errors
from tests.checkpoints import make_checkpoint

CRASH = Attempt(
    status=1, codes={0: 1, 1: 130}, processes=2, cause="", restarts=1, max_requeues=3,
    step_before=10, step_now=20,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"status": 0}, 0, "done"),
        ({}, 85, "failed with step 20 saved"),
        ({"step_now": 10}, 1, "no checkpoint beyond step 10"),
        ({"step_now": 0, "step_before": 10}, 1, "no checkpoint beyond"),
        ({"restarts": 3}, 1, "ORPO_MAX_REQUEUES"),
        ({"codes": {0: 2, 1: 130}}, 2, "mistake"),
        ({"status": 2, "codes": {}}, 2, "mistake"),  # the launcher's own refusal
        # launchers of several nodes end each other: what the ranks said counts
        ({"codes": {0: 85, 1: 85}, "status": 143}, 85, "stopped by SIGUSR1 with step 20"),
        ({"codes": {0: 85, 1: 130}}, 85, "stopped by SIGUSR1"),
        ({"codes": {0: 85, 1: 85}, "step_now": 10}, 3, "no checkpoint beyond"),
        ({"codes": {0: 85, 1: 85}, "restarts": 3}, 3, "ORPO_MAX_REQUEUES"),
        # an outage of the hub: nobody's mistake, and no checkpoint is to be expected
        ({"codes": {0: 75, 1: 130}, "step_now": 10}, 85, "network or a server failed"),
        ({"status": 75, "codes": {}, "step_before": None, "step_now": None}, 85, "queued again"),
        ({"status": 75, "codes": {0: 75}, "restarts": 3}, 75, "ORPO_MAX_REQUEUES"),
        # a hung rank is tried again without a new checkpoint; begin stops after two such
        ({"codes": {0: 76}, "status": 76, "step_now": 10}, 85, "a rank hung; queued again"),
        ({"codes": {0: 76}, "status": 137}, 85, "a rank hung with step 20"),
        ({"codes": {0: 76}, "status": 76, "restarts": 3}, 76, "ORPO_MAX_REQUEUES"),
        ({"codes": {0: 130, 1: 130}}, 130, "asked to stop"),
        ({"codes": {0: 130}}, 85, "failed"),  # the other rank was killed: no wish, a crash
        ({"codes": {}, "status": 130}, 130, "asked to stop"),
        ({"codes": {0: 130, 1: 130}, "cause": "preempted"}, 85, "preempted with step 20"),
        ({"codes": {}, "cause": "preempted", "step_now": 10}, 85, "preempted; queued again"),
        ({"codes": {0: 130, 1: 130}, "cause": "time limit"}, 85, "time limit with step 20"),
        ({"codes": {}, "cause": "time limit", "step_now": 10}, 3, "no checkpoint beyond"),
        ({"codes": {0: 130, 1: 130}, "cause": "cancelled"}, 130, "cancelled"),
        ({"codes": {}, "cause": "cancelled"}, 130, "cancelled"),
        ({"codes": {}, "cause": "requeued"}, 130, "queued again by SLURM itself"),
        # a driver of Ray, an evaluation: nothing to measure progress by
        ({"status": 7, "codes": {}, "step_before": None, "step_now": None}, 7, "nothing to go on"),
        ({"status": 85, "codes": {}, "step_before": None, "step_now": None}, 85, "queued again"),
    ],
)
def test_decisions(changes: dict[str, Any], code: int, why: str) -> None:
    verdict = decide(replace(CRASH, **changes))
    assert verdict.code == code
    assert why in verdict.why


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        ("JobId=1 JobState=RUNNING Reason=None PreemptTime=None", ""),
        ("JobId=1 JobState=RUNNING Reason=None PreemptTime=2026-11-23T02:25:00", "preempted"),
        ("JobId=1 JobState=COMPLETING Reason=TimeLimit PreemptTime=None", "time limit"),
        ("JobId=1 JobState=COMPLETING Reason=None PreemptTime=None", "cancelled"),
        ("JobId=1 JobState=CANCELLED Reason=None", "cancelled"),
        ("JobId=1 JobState=COMPLETING Reason=None Restarts=2", "requeued"),
        ("JobId=1 JobState=RUNNING Reason=None Restarts=1", ""),
        ("", ""),  # the controller did not answer
    ],
)
def test_what_slurm_is_doing_to_the_job(shown: str, cause: str) -> None:
    assert cause_of(shown, restarts=1) == cause


# --- attempts


class Run:
    """A run folder and a job folder, and what attempts leave in them."""

    def __init__(self, folder: Path):
        self.folder, self.restarts = folder, 0
        self.config = ORPOConfig(project_name=str(folder / "run"))

    def job(self, job: str = "7", **changes: Any) -> Job:
        values = {"restarts": self.restarts, "max_requeues": 5, "processes": 1, **changes}
        return Job(id=job, folder=self.folder / "job", **values)

    def attempt(self, saves: int = 0, status: str = "running", **config: Any) -> list[str]:
        """Begins an attempt that opens its run folder and saves a checkpoint, and no more."""
        self.config = self.config.replace(**config)
        flags = begin(self.job(), self.config)
        self.restarts += 1
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        (run / "run.json").write_text(json.dumps({"started": time.time(), "status": status}))
        if saves:
            self.checkpoint(saves)
        return flags

    def checkpoint(self, step: int) -> None:
        make_checkpoint(self.folder / "run", step)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


RESUME = ["--resume-from-checkpoint", "auto", "--no-overwrite"]


def test_a_second_attempt_goes_on_from_what_the_first_one_saved(run: Run) -> None:
    assert run.attempt(saves=5) == []
    assert run.attempt(saves=10) == RESUME


def test_a_second_attempt_without_a_checkpoint_starts_anew(run: Run) -> None:
    run.attempt()
    assert run.attempt() == ["--overwrite"]


def test_auto_needs_no_flags_to_start_anew(run: Run) -> None:
    run.attempt(resume_from_checkpoint="auto")
    assert run.attempt() == []


def test_checkpoints_of_an_older_run_are_not_gone_on_from(run: Run) -> None:
    """The first attempt died before it could replace the old run: --overwrite still stands."""
    run.checkpoint(500)
    (run.folder / "run" / "run.json").write_text('{"started": 1, "status": "completed"}')
    config = run.config.replace(overwrite=True)
    for restarts in (0, 1):
        assert begin(run.job(restarts=restarts), config) == []
        assert run.job().records()[-1]["step"] == 0
    assert not run.job().done.exists()


def test_a_run_that_was_completed_is_done(run: Run) -> None:
    """The node died between the end of training and the end of the attempt."""
    run.attempt(saves=5, status="completed")
    run.attempt()
    assert run.job().done.exists()


def test_two_attempts_in_a_row_without_progress_are_enough(run: Run) -> None:
    """SLURM itself requeues after node failures and preemption, for ever."""
    run.attempt(saves=5)
    run.attempt()  # from 5
    run.attempt()  # from 5, again
    with pytest.raises(GaveUp, match="without a checkpoint beyond step 5"):
        run.attempt()


def test_outages_are_no_sign_of_getting_nowhere(run: Run) -> None:
    for _ in range(3):
        run.attempt()
        replace(run.job(), restarts=run.restarts - 1).record("end", status=75, codes={"0": 75})
    run.attempt()
    run.attempt()
    with pytest.raises(GaveUp, match="without a checkpoint"):
        run.attempt()


def test_progress_in_between_counts(run: Run) -> None:
    for step in (0, 5, 0, 10, 0, 15):
        run.attempt(saves=step)


def test_requeues_by_slurm_are_capped_too(run: Run) -> None:
    with pytest.raises(GaveUp, match="ORPO_MAX_REQUEUES is 5"):
        begin(run.job(restarts=6), run.config)


def test_jobs_that_share_a_folder_count_for_themselves(run: Run) -> None:
    for job in ("7", "8", "9"):
        assert begin(run.job(job), run.config) == []


def test_an_attempt_is_judged_by_its_own_ranks(run: Run) -> None:
    job = run.job()
    begin(job, run.config)
    (job.exit_codes / "rank-0").write_text("2")
    begin(job, run.config)  # the same attempt number: a job that shares the folder
    _, verdict = end(job, run.config, 1, "JobState=RUNNING")
    assert (verdict.code, "no checkpoint" in verdict.why) == (1, True)
    run.checkpoint(5)
    _, verdict = end(job, run.config, 1, "JobState=RUNNING")
    assert verdict.code == 85
    _, verdict = end(job, run.config, 0, "JobState=RUNNING")
    assert verdict.code == 0
    assert job.done.exists()


def test_exit_codes_get_past_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> int:
        raise RuntimeError

    monkeypatch.setenv("ORPO_EXIT_CODES", str(tmp_path))
    assert recorded(lambda: 85) == 85
    assert recorded_codes(tmp_path) == {}  # no rank: a launcher, or a run of one process
    monkeypatch.setenv("RANK", "3")
    recorded(lambda: 85)
    monkeypatch.setenv("RANK", "11")
    with pytest.raises(RuntimeError):
        recorded(failing)
    assert recorded_codes(tmp_path) == {3: 85, 11: 1}


def test_the_first_error_is_shown(tmp_path: Path) -> None:
    (tmp_path / "node1.log").write_text("step 1\nstep 2\n")
    assert first_errors(tmp_path) == "node1.log, its end:\nstep 1\nstep 2"
    (tmp_path / "node2.log").write_text("step 1\norpo-dist: error: no data\nmore\n")
    assert first_errors(tmp_path) == "node2.log:\norpo-dist: error: no data"
    (tmp_path / "node1.log").write_text("step 1\norpo-dist: rank 0 failed:\nTraceback\nOSError\n")
    assert first_errors(tmp_path) == "node1.log:\norpo-dist: rank 0 failed:\nTraceback\nOSError"


def test_numbers_from_the_environment() -> None:
    environment = {"ORPO_JOB": "7", "ORPO_JOB_DIR": "x", "SLURM_RESTART_COUNT": "2"}
    assert Job.from_environment(environment).restarts == 2
    with pytest.raises(UserError, match="ORPO_MAX_REQUEUES 'many': must be a whole number"):
        Job.from_environment({**environment, "ORPO_MAX_REQUEUES": "many"})
    with pytest.raises(UserError, match="ORPO_JOB is not set"):
        Job.from_environment({})
