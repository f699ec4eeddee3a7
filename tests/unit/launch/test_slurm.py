"""What a SLURM job decides between attempts, and how bad nodes are told from good ones."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_dist import ORPOConfig, UserError
from orpo_dist.base.exits import recorded, recorded_codes
from orpo_dist.cli import main
from orpo_dist.launch import presets
from orpo_dist.launch.batch import FOLDER, BatchJob, batch_script
from orpo_dist.launch.preflight import BadNodes, Groups, Report, blame, read_reports
from orpo_dist.launch.probe import STAGES
from orpo_dist.launch.slurm import Attempt, GaveUp, Job, begin, cause_of, decide, end, first_errors
from tests.checkpoints import make_checkpoint
from tests.conftest import ROOT

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


# --- preflight


def cluster(
    *, dead: str = "", mute: str = "", gpus: str = "", loopback: str = ""
) -> tuple[Any, list[Groups]]:
    """A probe over nodes named by single letters, faulty in the given ways, and its calls.

    dead: keeps every step with it from starting. mute: fails every all-reduce it takes part in.
    """
    rounds: list[Groups] = []

    def probe(groups: Groups) -> dict[str, Report]:
        rounds.append(groups)
        return {node: report(node, group) for group in groups for node in group}

    def report(node: str, group: tuple[str, ...]) -> Report:
        if any(one in dead for one in group):
            return Report([], "does not answer")
        if node in gpus:
            return Report(["answers"], "gpus: sees 7 of 8 GPUs")
        if any(one in mute + gpus + loopback for one in group) and len(group) > 1:
            address = "127.0.1.1" if node in loopback else ""
            return Report(list(STAGES[:3]), "all-reduce: time is up", address)
        return Report(list(STAGES))

    return probe, rounds


@pytest.mark.parametrize(
    ("nodes", "faults", "bad"),
    [
        ("ab", {"dead": "b"}, "b"),
        ("ab", {"gpus": "a"}, "a"),
        ("ab", {"gpus": "ab"}, "ab"),
        ("ab", {"loopback": "b"}, "b"),
        ("ab", {"mute": "b"}, "ab"),  # two of two: either
        ("abcdef", {"mute": "d"}, "d"),
        ("abcdef", {"mute": "ae"}, "ae"),
        ("abcde", {"mute": "e"}, "e"),  # has no partner in the first round of pairs
        ("abcde", {"dead": "c", "gpus": "e"}, "ce"),
        ("a", {"gpus": "a"}, "a"),
    ],
)
def test_bad_nodes_are_named(nodes: str, faults: dict[str, str], bad: str) -> None:
    probe, rounds = cluster(**faults)
    with pytest.raises(BadNodes) as caught:
        blame(list(nodes), probe)
    assert "".join(caught.value.problems) == bad
    assert ("--exclude=" + ",".join(bad) in str(caught.value)) == (bad != "ab")
    assert len(rounds) <= 3  # each takes a port and a time limit


def test_fit_nodes_pass_in_one_round() -> None:
    probe, rounds = cluster()
    blame(["a", "b", "c"], probe)
    assert rounds == [[("a", "b", "c")]]


def test_what_probes_print() -> None:
    said = [
        "a library's warning",
        '{"node": "a", "stage": "answers", "loopback": "127.0.1.1"}',
        '{"node": "a", "stage": "gpus"}',
        '{"node": "b", "stage": "answers"}',
        '{"node": "b", "stage": "gpus", "problem": "sees 0 of 2 GPUs"}',
        '["not", "ours"]',
    ]
    reports = read_reports(("a", "b", "c"), "\n".join(said))
    assert reports["a"] == Report(
        ["answers", "gpus"], "shared folder: did not end in time", "127.0.1.1"
    )
    assert reports["b"] == Report(["answers"], "gpus: sees 0 of 2 GPUs")
    assert "does not answer" in reports["c"].problem


# --- the batch scripts


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
