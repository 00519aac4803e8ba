"""Whether a compressed file is whole: DuckDB reads what there is of some, and says nothing."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 1 << 20


def torn(path: Path, compression: str) -> str:
    """Why `path` (`gzip` or `zstd`) cannot be read to its end; empty when it can."""
    try:
        whole = _whole_gzip(path) if compression == "gzip" else _whole_zstd(path)
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        return f"torn: {str(error).lower()}"
    return "" if whole else f"torn: the {compression} stream has no end"


def _whole_gzip(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            while file.read(CHUNK_BYTES):
                pass
    except EOFError:
        return False
    return True


def _whole_zstd(path: Path) -> bool:
    """Frame by frame: a file may have several."""
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            while chunk:
                if frame.eof:
                    frame = decompressor.decompressobj()
                frame.decompress(chunk)
                chunk = frame.unused_data
    return frame.eof
