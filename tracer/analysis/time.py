"""Time as the records write it."""

from __future__ import annotations

from datetime import datetime, timezone

NS_PER_S = 1_000_000_000


def format_time(time_ns: int) -> str:
    """Return wall clock nanoseconds since 1970 as RFC 3339 in UTC, always nine digits."""
    seconds, nanoseconds = divmod(time_ns, NS_PER_S)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
