"""The queries of docs/scale.md on Spark, and the same text on DuckDB: answers and seconds.

    benchmarks/spark.py DIRECTORY

DIRECTORY holds Parquet of `tracer flows`, or of `benchmarks/report.py make`. Needs pyspark (PyPI)
and a Java runtime; Spark runs in this process's machine, with as many threads as it has cores.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import duckdb
from pyspark.sql import SparkSession

DROPS = """
SELECT concat_ws('/', "k8s.pod.namespace", "k8s.pod.name") AS pod, "drop.reason" AS reason,
    sum(packets) AS packets, sum(bytes) AS bytes
FROM flows WHERE verdict = 'dropped'
GROUP BY ALL ORDER BY packets DESC, pod, reason LIMIT 10
"""
TALKERS = """
SELECT "k8s.pod.namespace" AS namespace, "k8s.owner.name" AS workload, direction,
    count(*) AS records, sum(bytes) AS bytes
FROM flows WHERE verdict = 'forwarded'
GROUP BY ALL ORDER BY bytes DESC, namespace, workload, direction LIMIT 10
"""
PAIRS = """
SELECT "src.address" AS source, "dst.address" AS destination, sum(packets) AS packets
FROM flows WHERE direction = 'egress'
GROUP BY ALL ORDER BY packets DESC, source, destination LIMIT 10
"""
QUERIES = {"drops": DROPS, "talkers": TALKERS, "pairs": PAIRS}
SETTINGS = {
    # Names in double quotes, as in standard SQL.
    "spark.sql.ansi.enabled": "true",
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    # Spark's timestamps have microseconds: ours come as nanoseconds since 1970.
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.parquet.mergeSchema": "true",
    "spark.ui.enabled": "false",
}


def spark_session() -> SparkSession:
    """A Spark of this machine."""
    builder = SparkSession.builder.master("local[*]").appName("tracer")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def main(directory: Path) -> None:
    """Run each query on both, compare, and tell how long it took."""
    spark = spark_session()
    spark.sparkContext.setLogLevel("ERROR")
    spark.read.parquet(str(directory)).createOrReplaceTempView("flows")
    db = duckdb.connect()
    files = str(directory / "**" / "*.parquet").replace("'", "''")
    db.execute(
        f"CREATE VIEW flows AS FROM read_parquet('{files}', union_by_name = true)"
    ).fetchall()
    for name, query in QUERIES.items():
        begin = time.perf_counter()
        theirs = [tuple(row) for row in spark.sql(query).collect()]
        spark_s, begin = time.perf_counter() - begin, time.perf_counter()
        ours = db.execute(query).fetchall()
        duckdb_s = time.perf_counter() - begin
        same = [tuple(map(str, row)) for row in ours] == [tuple(map(str, row)) for row in theirs]
        print(
            f"{name:<8} Spark {spark_s:6.1f} s  DuckDB {duckdb_s:6.1f} s "
            f" {'the same answer' if same else 'DIFFERENT'}",
            flush=True,
        )
        if not same:
            print(ours[:3], theirs[:3], sep="\n")
    spark.stop()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
