"""Flow tables from rows, for tests."""

import numpy as np

from tracer.flow_table import FIELDS, TEXT, TIME, Column, coded, table


def table_of(*rows):
    """`{"packets": 3, "dst.port": 80, …}` each; times in nanoseconds."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kind = FIELDS[name].kind
        if kind == TEXT:
            columns[name] = coded(values)
            continue
        held = np.array([value is not None for value in values])
        dtype = np.int64 if kind == TIME else kind
        columns[name] = Column(np.array([value or 0 for value in values], dtype), None, held)
    return table(len(rows), columns)
