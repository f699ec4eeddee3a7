"""Nodes are tried before a job starts, and bad ones are named."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_dist.launch.preflight import BadNodes, Groups, Report, blame, read_reports
from orpo_dist.launch.probe import STAGES


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
