"""The cleaned file and the list of what was dropped, from a second reading of the same sources."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orpo_dist.audit.audit import Audit
from orpo_dist.base.types import UserError
from orpo_dist.config import ORPOConfig
from orpo_dist.data import columns_of
from orpo_dist.data.reading import Reading
from orpo_dist.data.sources import open_source


def dropped_rows(found: Audit, rules: Collection[str]) -> dict[int, tuple[str, str]]:
    """Row number -> (rule, detail) of the worst rule among ``rules`` that flagged it."""
    dropped: dict[int, tuple[str, str]] = {}
    for finding in found.findings:
        if finding.rule in rules:
            for row, detail in finding.rows.items():
                dropped.setdefault(row, (finding.rule, detail))
    return dict(sorted(dropped.items()))


def drop_list_path(clean: Path) -> Path:
    return clean.with_suffix(".dropped.csv")


def write_clean(found: Audit, config: ORPOConfig, clean: Path, rules: Collection[str]) -> int:
    """Write the rows that stay, unchanged, as JSON lines, and the drop list beside them.

    Of ranked lists the pairs that stay are written. Returns how many rows were dropped. Raises
    ``UserError`` if the files changed meanwhile.
    """
    dropped = dropped_rows(found, rules)
    partial = clean.with_name(clean.name + ".part")
    origins = iter(enumerate(found.corpus.origins))
    with partial.open("w", encoding="utf-8") as out:
        for path in config.data_path:
            source = open_source(path, config.train_split)
            for record in Reading(source, columns_of(config, training=True), quiet=True):
                number, known = next(origins, (-1, ""))
                if known != record.origin:
                    raise UserError(
                        f"{record.origin}: the file changed while it was audited; run again"
                    )
                if number not in dropped and isinstance(record.raw, dict):
                    out.write(_line(record.raw))
    partial.replace(clean)
    with drop_list_path(clean).open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("row", "reason", "detail"))
        for number, (rule, detail) in dropped.items():
            writer.writerow((found.corpus.origins[number], rule, detail))
    return len(dropped)


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character in a column that is not read
        text = json.dumps(row, default=str)
    return text + "\n"
