"""A run folder -> one self-contained HTML page with plots; reads files only, imports no torch."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import yaml

from orpo_dist.base.types import UserError
from orpo_dist.config.schedules import CONSTANT
from orpo_dist.runs.advice import advise
from orpo_dist.runs.folder import RunFolder, read_json, read_metrics, training_data, write_text

# Panels: title, y label, and the curves in them as (label, metric of the training log).
PANELS = (
    ("Loss", "nats", (("ORPO", "loss/orpo"), ("SFT", "loss/sft"), ("odds ratio", "loss/odds_ratio"))),
    ("Preference accuracy", "share of pairs", (("accuracy", "rewards/accuracies"),)),
    ("Mean log-probability", "nats per token", (("chosen", "logps/chosen"), ("rejected", "logps/rejected"))),
    ("Margin (chosen − rejected)", "nats per token", (("margin", "logps/margins"),)),
)  # fmt: skip
COLOURS = ("#2563eb", "#d97706", "#059669")

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2937 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }} h3 {{ font-size: 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 1rem }} .tile {{ border: 1px solid #d1d5db; border-radius: .5rem; padding: .6rem 1rem }}
.tile b {{ display: block; font-size: 1.4rem }} .tile span {{ color: #6b7280 }}
.status-failed, .status-interrupted {{ color: #b91c1c }}
svg {{ max-width: 100%; height: auto }} pre {{ background: #f3f4f6; padding: .8rem; overflow-x: auto; font-size: .85rem }}
</style>
<h1>{title}</h1><p>{subtitle}</p>
<div class="tiles">{tiles}</div>
{advice}<h2>Curves</h2>{curves}
{categories}<h2>Data</h2>{data}
<h2>Settings</h2><pre>{config}</pre>
</html>
"""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder; ``UserError`` if the folder holds no run."""
    run = RunFolder(folder)
    if not run.run.exists():
        raise UserError(f"{folder}: is not a run folder (it has no run.json)")
    state, data = read_json(run.run), read_json(run.data_report)
    config = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    log = read_metrics(run.metrics)
    page = PAGE.format(
        title=html.escape(f"ORPO run {folder.name}"),
        subtitle=_subtitle(state, _settings(config)),
        tiles=_tiles(log),
        advice=_advice(log, training_data(data)),
        curves=_curves(log),
        categories=_categories(log),
        data="".join(
            _data_table(name, part) for name, part in data.items() if isinstance(part, dict)
        ),
        config=html.escape(config),
    )
    write_text(run.report, page)
    return run.report


def _curves(log: list[dict[str, Any]]) -> str:
    if not log:
        return "<p>Nothing was logged.</p>"
    try:
        return curves_svg(log)
    except ModuleNotFoundError as error:  # the run is worth more than its picture
        if error.name != "matplotlib":
            raise
        return "<p>No curves: matplotlib is not installed. Install it and run orpo-dist report.</p>"


def _settings(config: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _subtitle(state: dict[str, Any], config: dict[str, Any]) -> str:
    status = str(state.get("status"))
    schedule, stages = config.get("orpo_alpha_schedule", CONSTANT), config.get("stages") or []
    how = "" if schedule == CONSTANT else f" by {schedule}"
    parts = [
        f"model {config.get('model')}",
        f"alpha {config.get('orpo_alpha')}{how} ({config.get('loss_form')})",
        f"learning rate {config.get('lr')}",
        *([f"{len(stages)} stages"] if stages else []),
        f"{state.get('seconds', '?')} s",
    ]
    text = f'<b class="status-{html.escape(status)}">{html.escape(status)}</b> · '
    text += html.escape(" · ".join(parts))
    if state.get("error"):
        text += f"<br>{html.escape(str(state['error']))}"
    return text


def _tiles(log: list[dict[str, Any]]) -> str:
    """First and last evaluation of what people ask for first."""
    evaluations = [entry for entry in log if "eval/loss" in entry]
    prefix = "eval/" if evaluations else ""
    entries = evaluations or log
    tiles = []
    for label, name, form in (
        ("preference accuracy", "rewards/accuracies", "{:.1%}"),
        ("margin, nats per token", "logps/margins", "{:+.3f}"),
        ("loss", "loss/orpo", "{:.4f}"),
    ):
        values = [entry[prefix + name] for entry in entries if prefix + name in entry]
        if values:
            shown = form.format(values[-1])
            if len(values) > 1:
                shown = f"{form.format(values[0])} → {shown}"
            where = "held-out " if evaluations else "training "
            tiles.append(f'<div class="tile"><b>{shown}</b><span>{where}{label}</span></div>')
    return "".join(tiles)


def _categories(log: list[dict[str, Any]]) -> str:
    """First and last figures of every category, of evaluations where there are any."""
    held_out = [
        {k[5:]: v for k, v in e.items() if k[:5] == "eval/"} for e in log if "eval/loss" in e
    ]
    entries = held_out or log
    names = sorted({key[6:] for entry in entries for key in entry if key.startswith("pairs/")})
    if not names:
        return ""
    columns = (
        ("preference accuracy", "rewards/accuracies", "{:.1%}"),
        ("margin, nats per token", "logps/margins", "{:+.3f}"),
        ("NLL, nats per token", "loss/sft", "{:.3f}"),
    )
    head = "".join(f"<th>{label}</th>" for label, _, _ in columns)
    rows = []
    for name in names:
        mine = [entry for entry in entries if f"pairs/{name}" in entry]
        ends = (mine[0], mine[-1]) if len(mine) > 1 else mine
        cells = [
            " → ".join(form.format(entry[f"{metric}/{name}"]) for entry in ends)
            for _, metric, form in columns
        ]
        pairs = f"{mine[-1][f'pairs/{name}']:.0f}"
        values = "".join(f"<td>{cell}</td>" for cell in (pairs, *cells))
        rows.append(f"<tr><th>{html.escape(name)}</th>{values}</tr>")
    which = "held-out" if held_out else "training, first and last log line"
    return (
        f"<h2>Categories ({which})</h2><table><tr><th></th><th>pairs</th>{head}</tr>"
        + "".join(rows)
        + "</table>"
    )


def _advice(log: list[dict[str, Any]], data: dict[str, Any] | None) -> str:
    found = advise(log, data)
    if not found:
        return ""
    items = "".join(
        f"<li><b>{html.escape(advice.place + advice.finding)}</b>: try {html.escape(advice.remedy)}</li>"
        for advice in found
    )
    return f"<h2>Advice</h2><ul>{items}</ul>"


def curves_svg(log: list[dict[str, Any]]) -> str:
    """The training curves (lines) and evaluations (dots) as inline SVG."""
    return inline_svg(curves_figure(log))


def inline_svg(figure: Any) -> str:
    """A matplotlib figure as an ``<svg>`` element to stand inside a page."""
    import matplotlib
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    buffer = io.StringIO()
    # Names with dollar signs are no formulas; the ticks of logarithmic axes are.
    ticks = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    for text in set(figure.findobj(Text)) - ticks:
        text.set_parse_math(False)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def curves_figure(log: list[dict[str, Any]]) -> Any:
    """A matplotlib figure with one panel per entry of ``PANELS``."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12, 6.4), layout="constrained")
        for axis, (title, unit, curves) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for colour, (label, name) in zip(COLOURS, curves, strict=False):
                _curve(axis, log, name, label, colour)
            axis.set(title=title, xlabel="optimizer step", ylabel=unit)
            axis.grid(alpha=0.25)
            for step in _stage_ends(log):
                axis.axvline(step, color="#9ca3af", lw=1, ls=":")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


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


def _data_table(name: str, report: dict[str, Any]) -> str:
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
    cells = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in rows
    )
    return f"<h3>{html.escape(name)}</h3><table>{cells}</table>"
