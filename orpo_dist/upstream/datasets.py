"""datasets: what identifies rows without reading them all."""

from __future__ import annotations

from typing import Any

from orpo_dist.upstream.register import check, reaches_for


@reaches_for(
    "datasets.arrow_dataset:Dataset@_fingerprint",
    because="encoded rows are kept by what they were made from, which a data set of the hub says",
    upstream="datasets/arrow_dataset.py, Dataset (5.2)",
    until="a Dataset says its fingerprint by a public name",
)
def fingerprint_of(dataset: Any) -> str:
    """What changes whenever the rows of a ``datasets.Dataset`` do."""
    check("datasets")
    return str(dataset._fingerprint)
