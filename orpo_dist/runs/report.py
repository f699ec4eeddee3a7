"""A run folder -> one self-contained HTML page with plots; reads files only, imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from orpo_dist.base.metrics import BY_CATEGORY, METRICS
from orpo_dist.base.pages.figures import COLOURS, FAINT, inline_svg, legend, panel
from orpo_dist.base.pages.render import render
from orpo_dist.base.types import UserError
from orpo_dist.config.schedules import CONSTANT
from orpo_dist.runs.advice import advise
from orpo_dist.runs.folder import RunFolder, read_json, read_metrics, training_data, write_text

# Panels: title, and the curves in them as (label, metric of the training log).
PANELS = (
    ("Loss", (("ORPO", "loss/orpo"), ("SFT", "loss/sft"), ("odds ratio", "loss/odds_ratio"))),
    ("Preference accuracy", (("accuracy", "rewards/accuracies"),)),
    ("Mean log-probability", (("chosen", "logps/chosen"), ("rejected", "logps/rejected"))),
    ("Margin (chosen − rejected)", (("margin", "logps/margins"),)),
)
NO_MATPLOTLIB = "No curves: matplotlib is not installed. Install it and run orpo-dist report."


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder; ``UserError`` if the folder holds no run."""
    run = RunFolder(folder)
    if not run.run.exists():
        raise UserError(f"{folder}: is not a run folder (it has no run.json)")
    state, data = read_json(run.run), read_json(run.data_report)
    config = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    log = read_metrics(run.metrics)
    drawn, no_curves = _curves(log)
    page = render(
        "runs/report.html",
        title=f"ORPO run {folder.name}",
        status=str(state.get("status")),
        how=_how(state, _settings(config)),
        error=state.get("error"),
        tiles=_tiles(log),
        advice=[(a.place + a.finding, a.remedy) for a in advise(log, training_data(data))],
        curves=drawn,
        no_curves=no_curves,
        categories=_categories(log),
        data=[(name, _data_rows(part)) for name, part in data.items() if isinstance(part, dict)],
        config=config,
    )
    write_text(run.report, page)
    return run.report


def _curves(log: list[dict[str, Any]]) -> tuple[list[Markup], str]:
    """The curves as SVG; why there are none."""
    if not log:
        return [], "Nothing was logged."
    try:
        return curves_svg(log), ""
    except ModuleNotFoundError as error:  # the run is worth more than its picture
        if error.name != "matplotlib":
            raise
        return [], NO_MATPLOTLIB


def _settings(config: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _how(state: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What was trained, in a few words."""
    schedule, stages = config.get("orpo_alpha_schedule", CONSTANT), config.get("stages") or []
    how = "" if schedule == CONSTANT else f" by {schedule}"
    return [
        f"model {config.get('model')}",
        f"alpha {config.get('orpo_alpha')}{how} ({config.get('loss_form')})",
        f"learning rate {config.get('lr')}",
        *([f"{len(stages)} stages"] if stages else []),
        f"{state.get('seconds', '?')} s",
    ]


def _tiles(log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """First and last evaluation of what people ask for first, and what it is."""
    evaluations = [entry for entry in log if "eval/loss" in entry]
    prefix = "eval/" if evaluations else ""
    entries = evaluations or log
    tiles = []
    for name, form in (
        ("rewards/accuracies", "{:.1%}"),
        ("logps/margins", "{:+.3f}"),
        ("loss/orpo", "{:.4f}"),
    ):
        values = [entry[prefix + name] for entry in entries if prefix + name in entry]
        if values:
            shown = form.format(values[-1])
            if len(values) > 1:
                shown = f"{form.format(values[0])} → {shown}"
            where = "held-out" if evaluations else "training"
            tiles.append((shown, f"{where} {METRICS[name].label}"))
    return tiles


def _categories(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """First and last figures of every category, of evaluations where there are any."""
    held_out = [
        {k[5:]: v for k, v in e.items() if k[:5] == "eval/"} for e in log if "eval/loss" in e
    ]
    entries = held_out or log
    names = sorted({key[6:] for entry in entries for key in entry if key.startswith("pairs/")})
    if not names:
        return None
    columns = dict(zip(BY_CATEGORY, ("{:.1%}", "{:+.3f}", "{:.3f}"), strict=True))
    rows = []
    for name in names:
        mine = [entry for entry in entries if f"pairs/{name}" in entry]
        ends = (mine[0], mine[-1]) if len(mine) > 1 else mine
        cells = [
            " → ".join(form.format(entry[f"{metric}/{name}"]) for entry in ends)
            for metric, form in columns.items()
        ]
        rows.append((name, f"{mine[-1][f'pairs/{name}']:.0f}", *cells))
    return {
        "which": "held-out" if held_out else "training, first and last log line",
        "head": ("", "pairs", *(METRICS[metric].label for metric in columns)),
        "rows": rows,
    }


def curves_svg(log: list[dict[str, Any]]) -> list[Markup]:
    """The training curves (lines) and evaluations (dots) as inline SVG, one for every panel."""
    drawn = zip(PANELS, curves_figures(log), strict=True)
    return [inline_svg(figure, f"{title} over the steps") for (title, *_), figure in drawn]


def curves_figures(log: list[dict[str, Any]]) -> list[Any]:
    """A matplotlib figure for every entry of ``PANELS``."""
    drawn = []
    for title, curves in PANELS:
        figure, axis = panel()
        for colour, (label, name) in zip(COLOURS, curves, strict=False):
            _curve(axis, log, name, label, colour)
        axis.set(title=title, xlabel="optimizer step", ylabel=METRICS[curves[-1][1]].unit)
        for step in _stage_ends(log):
            axis.axvline(step, color=FAINT, lw=1, ls=":")
        legend(figure)
        drawn.append(figure)
    return drawn


def _stage_ends(log: list[dict[str, Any]]) -> list[float]:
    """The last step of every stage but the last one."""
    ends: dict[Any, float] = {}
    for entry in log:
        if "stage" in entry:
            ends[entry["stage"]] = max(entry["step"], ends.get(entry["stage"], 0))
    return sorted(ends.values())[:-1]


def _curve(axis: Any, log: list[dict[str, Any]], name: str, label: str, colour: str) -> None:
    trained = [(entry["step"], entry[name]) for entry in log if name in entry]
    held_out = [(entry["step"], entry[f"eval/{name}"]) for entry in log if f"eval/{name}" in entry]
    if trained:
        axis.plot(*zip(*trained, strict=True), color=colour, lw=1.2, alpha=0.6, label=label)
    if held_out:
        axis.plot(
            *zip(*held_out, strict=True), "o-", color=colour, lw=2, ms=5, label=f"{label}, held out"
        )


def _data_rows(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """What was read, skipped and cut, by name."""
    rows = [("rows read", report["rows"]), ("pairs used", report["pairs"])]
    rows += [
        (f"skipped: {entry['meaning']}", f"{entry['count']} ({', '.join(entry['first'])})")
        for entry in report["skipped"].values()
    ]
    rows += [
        (f"{part}s cut", f"{cut['count']} ({cut['tokens']} tokens)")
        for part, cut in report["truncated"].items()
        if cut["count"]
    ]
    rows += [
        (f"{part} tokens", "median {median}, 95 % up to {p95}, longest {max}".format(**stats))
        for part, stats in report["tokens"].items()
    ]
    return rows
