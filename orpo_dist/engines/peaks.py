"""What GPUs could compute at best: the makers' figures, found by the names that devices have."""

from __future__ import annotations

import re

# Dense bf16 with fp32 accumulation, FLOP/s, from NVIDIA's data sheets and architecture papers; a
# GPU whose figure is not printed there for this very case is left out.
PEAKS = {
    "GB300": 2500e12,
    "GB200": 2500e12,
    "B300": 2250e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX PRO 6000 Blackwell Workstation Edition": 503.8e12,
    "RTX 6000 Ada Generation": 364e12,
    "RTX A6000": 154.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 4080": 97.5e12,
    "RTX 3090": 71.2e12,
    "RTX 3090 Ti": 80e12,
}

# Words after a name that make it another chip, or a part of one (vGPU profiles end as in -8Q).
ANOTHER = re.compile(r"\b(Laptop|Mobile|Max-Q|Ti|SUPER|D|NVL|MIG)\b|-\d+[ABCQ]$", re.IGNORECASE)


def peak_of(device: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s by its full name; None where no data sheet gives it."""
    for name in sorted(PEAKS, key=len, reverse=True):
        if found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", device, re.IGNORECASE):
            return None if ANOTHER.search(device[found.end() :]) else PEAKS[name]
    return None
