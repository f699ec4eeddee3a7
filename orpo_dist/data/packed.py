"""Text files that may be compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import Any, TextIO

PACKINGS = (".gz", ".bz2", ".xz", ".zst")


def packing_of(name: str) -> str:
    """The ending of a file name that says how it is compressed, or an empty text."""
    return next((end for end in PACKINGS if name.lower().endswith(end)), "")


def kind_of(name: str) -> str:
    """The ending that says what is inside: ``pairs.jsonl.gz`` -> ``jsonl``."""
    return name.lower().removesuffix(packing_of(name)).rpartition(".")[2]


def open_text(file: Path) -> TextIO:
    """The text without a byte order mark; lines may end in CR, LF or both."""
    packing, binary = packing_of(file.name), _open_binary(file)
    return io.TextIOWrapper(
        binary if packing else io.BufferedReader(binary), "utf-8-sig", newline=""
    )


def _open_binary(file: Path) -> Any:
    match packing_of(file.name):
        case ".gz":
            return gzip.GzipFile(file)
        case ".bz2":
            return bz2.BZ2File(file)
        case ".xz":
            return lzma.LZMAFile(file)
        case ".zst":
            import pyarrow

            return pyarrow.CompressedInputStream(str(file), "zstd")
    return io.FileIO(file)
