"""What is said of a family, from all its figures."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.oracle import GRADIENT, LOGP

Found = dict[str, Any]


def verdict(found: Found) -> Found:
    """The worst that any mode shows, and why."""
    modes: dict[str, Found] = found["modes"]
    for mode, figures in modes.items():
        if "traceback" in figures:
            return {"verdict": "TRACEBACK", "why": f"{mode}: {figures['traceback']}"}
    for mode, figures in modes.items():
        for kind in ("short", "long"):
            logp, gradient = figures.get(kind, (0.0, 0.0))
            if not (logp <= LOGP and gradient <= GRADIENT):
                why = f"{mode}, {kind}: {logp:.1g} nats, gradient {gradient:.1%}"
                return {"verdict": "WRONG", "why": f"{why}, {figures['path']}"}
        if not figures.get("reloaded", 0.0) <= LOGP or figures.get("lost"):
            why = f"{figures['reloaded']:.1g} nats apart, {figures.get('lost', 0)} tensors lost"
            why = f"{mode}: saved and loaded again, {why}"
            return {"verdict": "WRONG", "why": why}
    if otherwise := _in_bf16(found["bf16"], modes):
        return otherwise
    first = next(iter(modes.values()))
    if "refused" in first:
        return {"verdict": "refused", "why": first["refused"]}
    halves = {f"{mode}, bf16": half for mode, half in found["bf16"].items()}
    others = [f"{m}: {f['refused']}" for m, f in (modes | halves).items() if "refused" in f]
    return {"verdict": first["path"], "why": "; ".join(others), "reason": first["reason"]}


def _in_bf16(halves: dict[str, Found], modes: dict[str, Found]) -> Found:
    """Whatever goes another way in bf16 than in fp32."""
    for mode, half in halves.items():
        if "traceback" in half:
            return {"verdict": "TRACEBACK", "why": f"{mode}, bf16: {half['traceback']}"}
        if "mixed precision" in half.get("refused", ""):
            continue
        decided, beside = (x.get("path", "refused") for x in (half, modes.get(mode, half)))
        if decided != beside:
            return {"verdict": "WRONG", "why": f"{mode}: {decided} in bf16, {beside} in fp32"}
    return {}
