"""Data in: files or hub -> rows -> chat template -> token ids -> truncated pairs, all counted."""

from orpo_dist.data.bounds import check_pairs
from orpo_dist.data.encode import Encoder, Limits, template_text
from orpo_dist.data.pairs import PairDataset
from orpo_dist.data.prepare import build, cache_root, prepare
from orpo_dist.data.rows import Columns
from orpo_dist.data.settings import (
    as_pairs,
    columns_of,
    held_out_paths,
    keep_used_template,
    limits_of,
    make_encoder,
)
from orpo_dist.data.sources import Source

__all__ = [
    "Columns",
    "Encoder",
    "Limits",
    "PairDataset",
    "Source",
    "as_pairs",
    "build",
    "cache_root",
    "check_pairs",
    "columns_of",
    "held_out_paths",
    "keep_used_template",
    "limits_of",
    "make_encoder",
    "prepare",
    "template_text",
]
