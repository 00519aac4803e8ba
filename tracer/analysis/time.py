"""Time as the records write it."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache

NS_PER_S = 1_000_000_000


def format_time(time_ns: int) -> str:
    """Return wall clock nanoseconds since 1970 as RFC 3339 in UTC, always nine digits."""
    seconds, nanoseconds = divmod(time_ns, NS_PER_S)
    return f"{second_text(seconds)}{nanoseconds:09d}Z"


@lru_cache(maxsize=1024)
def second_text(seconds: int) -> str:
    """Of a moment, given in whole seconds since 1970, what stands before the nanoseconds."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}."
