"""The makers' figures: every one of them, and the names that devices have."""

from __future__ import annotations

import pytest

from orpo_dist.engines.peaks import PEAKS, peak_of
from orpo_dist.planning.speed import USUAL

# TFLOP/s of dense bf16, once more and by hand from the data sheets: names as the driver gives them.
KNOWN = {
    "NVIDIA L40": 181, "NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA A10G": 70,
    "NVIDIA A10": 125, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-PCIE-40GB": 312, "NVIDIA A800-SXM4-80GB": 312, "NVIDIA A40": 149.7,
    "NVIDIA A30": 165, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835, "NVIDIA H200": 989, "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 989, "NVIDIA H20": 148, "NVIDIA H800": 989,
    "NVIDIA B200": 2250, "NVIDIA B300 SXM6 AC": 2250, "NVIDIA GB200": 2500,
    "NVIDIA H800 PCIe": 756, "NVIDIA GB300": 2500,
    "NVIDIA RTX A6000": 154.8, "NVIDIA RTX 6000 Ada Generation": 364,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "NVIDIA GeForce RTX 5090": 209.5, "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4080": 97.5, "NVIDIA GeForce RTX 3090": 71.2,
    "NVIDIA GeForce RTX 3090 Ti": 80, "h100": 989,
}  # fmt: skip
# Other chips, parts of one, and what no data sheet tells.
UNKNOWN = (
    "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA GeForce RTX 5090 D",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA H800 NVL",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A40-8Q",
    "Quadro RTX 6000", "Tesla T4", "NVIDIA GB10", "Z9",
)  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_peaks_go_by_the_whole_name_of_a_device(name: str) -> None:
    assert peak_of(name) == pytest.approx(KNOWN[name] * 1e12)


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_of(name) is None


def test_every_figure_is_held_to_a_device_of_the_list() -> None:
    """So that none of them can be changed by mistake."""
    longest = sorted(PEAKS, key=len, reverse=True)
    named = {next(name for name in longest if name.lower() in full.lower()) for full in KNOWN}
    assert named == set(PEAKS)


def test_the_gpus_that_a_plan_assumes_have_a_peak() -> None:
    assert all(peak_of(name) == PEAKS[name] for name in [*PEAKS, *USUAL.values()])
