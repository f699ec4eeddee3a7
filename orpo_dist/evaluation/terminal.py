"""Evaluations as tables for a terminal."""

from __future__ import annotations

from typing import Any

from orpo_dist.base.intervals import in_words

HEAD = f"{'pairs':>7}{'accuracy':>10}{'95 % interval':>18}{'perplexity':>12}{'margin':>9}"


def format_evaluation(result: dict[str, Any]) -> str:
    """The result of one model."""
    lines: list[str] = []
    if "pairs" in result:
        rows = [("all", result), *result["categories"].items()]
        width = max(len(name) for name, _ in rows) + 2
        lines.append(" " * width + HEAD)
        lines += [_row(name, part, width) for name, part in rows]
        lines += ["", length_sentence(result["length_bias"]), sure_sentence(result["calibration"])]
    lines += [text_sentence(text) for text in result.get("texts", [])]
    return "\n".join(lines)


def format_models(found: dict[str, Any]) -> str:
    """Several models: one table, then each against the first."""
    models = found["models"]
    width = max(len(short(name, models)) for name in models) + 2
    lines: list[str] = []
    if all("pairs" in result for result in models.values()):
        lines.append(" " * width + HEAD)
        lines += [_row(short(name, models), r, width) for name, r in models.items()]
    for name, result in models.items():
        for text in result.get("texts", []):
            lines.append(f"{short(name, models)}: {text_sentence(text)}")
    lines += [comparison_sentence(entry, models) for entry in found["comparisons"]]
    return "\n".join(lines)


def short(name: str, names: Any) -> str:
    """The last part of a path where that still tells the models apart."""
    last = name.rstrip("/").rpartition("/")[2]
    alike = [other for other in names if other.rstrip("/").rpartition("/")[2] == last]
    return last if len(alike) == 1 else name


def _row(name: str, part: dict[str, Any], width: int) -> str:
    interval = f"{part['accuracy_low']:.3f} – {part['accuracy_high']:.3f}"
    perplexity = "–" if part["perplexity"] is None else f"{part['perplexity']:.2f}"
    return (
        f"{name:<{width}}{part['pairs']:>7}{part['preference_accuracy']:>10.3f}"
        f"{interval:>18}{perplexity:>12}{part['mean_margin']:>+9.3f}"
    )


def length_sentence(bias: dict[str, Any]) -> str:
    """Whether the model goes by length."""
    longer, shorter = bias["longer_chosen"], bias["longer_rejected"]
    if bias["gap"] is None:
        return "length: the data do not hold both longer and shorter chosen answers"
    return (
        f"length: accuracy {longer['preference_accuracy']:.3f} where the chosen answer is longer "
        f"({longer['pairs']} pairs), {shorter['preference_accuracy']:.3f} where the rejected one "
        f"is ({shorter['pairs']}); gap {bias['gap']:+.3f} "
        f"({bias['gap_low']:+.3f} to {bias['gap_high']:+.3f})"
    )


def sure_sentence(calibration: dict[str, Any]) -> str:
    """Whether the model is right as often as it is sure."""
    return (
        f"calibration: mean confidence {calibration['mean_confidence']:.3f}, expected error "
        f"{calibration['expected_error']:.3f}, Brier score {calibration['brier']:.3f}"
    )


def text_sentence(text: dict[str, Any]) -> str:
    return (
        f"{text['text']}: perplexity {text['perplexity']:.2f} over {text['tokens']} tokens, "
        f"{text['bits_per_byte']:.3f} bits per byte"
    )


def comparison_sentence(entry: dict[str, Any], names: Any) -> str:
    """One comparison in words."""
    first, second = short(entry["first"], names), short(entry["second"], names)
    if "why_not" in entry:
        return f"{second} against {first}: not compared, {entry['why_not']}"
    adjusted = ""
    if entry["p_adjusted"] != entry["p_value"]:
        adjusted = f", {entry['p_adjusted']:.3g} for the number of comparisons"
    accuracy, margin = (_with_interval(entry, name) for name in ("accuracy", "margin"))
    return (
        f"{second} against {first}: {accuracy}, "
        f"right alone on {entry['only_second']} and {entry['only_first']} pairs, "
        f"McNemar p = {entry['p_value']:.3g}{adjusted}; {margin}"
    )


def _with_interval(entry: dict[str, Any], name: str) -> str:
    low, high = (entry[f"{name}_difference_{end}"] for end in ("low", "high"))
    return f"{name} {entry[f'{name}_difference']:+.3f} {in_words(low, high, '+.3f')}"


def format_tasks(found: dict[str, Any]) -> str:
    """One line per model, task and metric."""
    lines = []
    for model, result in found["models"].items():
        for task, metrics in result.get("tasks", {}).items():
            for name, value in metrics.items():
                if isinstance(value, float) and "stderr" not in name:
                    metric = name.partition(",")[0]
                    error = metrics.get(name.replace(metric, f"{metric}_stderr", 1))
                    spread = f" ± {error:.4f}" if isinstance(error, float) else ""
                    lines.append(
                        f"{short(model, found['models'])}: {task} {metric} {value:.4f}{spread}"
                    )
    return "\n".join(lines)
