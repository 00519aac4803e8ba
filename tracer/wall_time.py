"""Time as the records write it: RFC 3339 in UTC, always nine digits of nanoseconds."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NS_PER_S = 1_000_000_000
_PARTS = np.dtype(
    [("second", "S20"), ("milli", "S3"), ("micro", "S3"), ("nano", "S3"), ("zone", "S1")]
)
_THREE_DIGITS = np.array([f"{number:03d}" for number in range(1000)], "S3")


def time_text(time_ns: int) -> str:
    """Wall clock nanoseconds since 1970 as text."""
    seconds, nanoseconds = divmod(time_ns, NS_PER_S)
    return f"{_second_text(seconds)}{nanoseconds:09d}Z"


@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    """Of a moment, given in whole seconds since 1970, what stands before the nanoseconds."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}."


def time_texts(times_ns: NDArray[np.generic]) -> list[str]:
    """`time_text` of many, (n,) of any integer type or datetime64[ns]; digits made in columns."""
    text, width = time_array(times_ns).tobytes().decode("ascii"), _PARTS.itemsize
    return [text[at : at + width] for at in range(0, len(text), width)]


def time_array(times_ns: NDArray[np.generic]) -> NDArray[np.bytes_]:
    """The same in ASCII."""
    seconds, nanoseconds = np.divmod(times_ns.astype(np.int64), NS_PER_S)
    each, second = np.unique(seconds, return_inverse=True)
    written = np.empty(len(seconds), _PARTS)
    written["second"] = np.array([_second_text(one) for one in each.tolist()], "S20")[second]
    micros, written["nano"] = _last_digits(nanoseconds)
    millis, written["micro"] = _last_digits(micros)
    _, written["milli"] = _last_digits(millis)
    written["zone"] = b"Z"
    return written.view(f"S{_PARTS.itemsize}")


def _last_digits(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    """All but the last three digits of each, and those three."""
    rest = numbers // 1000
    return rest, _THREE_DIGITS[numbers - rest * 1000]
