"""CSV of `tracer flows` read by pandas and by DuckDB: both must tell the same of every column.

    benchmarks/pandas_csv.py FILE…

Needs pandas (PyPI), which tests do not: where it is installed, Arrow imports it into every process
that writes Parquet.
"""

from __future__ import annotations

import sys

import duckdb
import pandas as pd

TIMES = ("time", "end_time")


def by_pandas(paths: list[str]) -> dict[str, tuple[int, str]]:
    """Of each column how many rows know it, and the least and greatest of what they know."""
    parts = [
        pd.read_csv(path, dtype_backend="numpy_nullable", parse_dates=[*TIMES]) for path in paths
    ]
    whole = pd.concat(parts)
    found = {}
    for name, column in whole.items():
        known = column.dropna()
        if name in TIMES:
            known = known.astype("int64")
        ends = f"{known.min()} {known.max()}" if len(known) else ""
        found[str(name)] = len(known), ends
    return found


def by_duckdb(paths: list[str]) -> dict[str, tuple[int, str]]:
    """The same, told by another reader, with the types that the values have."""
    types = dict.fromkeys(TIMES, "TIMESTAMP_NS")
    options = f"union_by_name = true, sample_size = -1, types = {types}"
    table = duckdb.connect().sql(f"FROM read_csv({paths!r}, {options})")
    found = {}
    for name in table.columns:
        value = f'epoch_ns("{name}")' if name in TIMES else f'"{name}"'
        answer = table.aggregate(f"count({value}), min({value}), max({value})").fetchall()
        count, least, most = answer[0]
        found[name] = count, f"{least} {most}" if count else ""
    return found


def main(paths: list[str]) -> int:
    """Compare; 1 when a column differs."""
    pandas, other = by_pandas(paths), by_duckdb(paths)
    wrong = [name for name in pandas if pandas[name] != other.get(name)]
    for name in wrong:
        print(f"{name}: pandas {pandas[name]}, duckdb {other.get(name)}")
    print(f"pandas {pd.__version__}: {len(pandas)} columns, {len(wrong)} differ")
    return bool(wrong or pandas.keys() != other.keys())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
