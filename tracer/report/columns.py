"""The columns of the view `flows`, and their SQL types."""

from __future__ import annotations

from tracer.flow_table import BOOL, FIELDS, TEXT, TIME

_TYPES = {
    TEXT: "VARCHAR",
    TIME: "TIMESTAMP_NS",
    BOOL: "BOOLEAN",
    "u1": "UTINYINT",
    "u2": "USMALLINT",
    "u4": "UINTEGER",
    "u8": "UBIGINT",
    "i8": "BIGINT",
    "f8": "DOUBLE",
}

OTHER_COMMANDS = {
    "service.namespace": "VARCHAR",
    "service.name": "VARCHAR",
    "service.address": "VARCHAR",
    "service.port": "USMALLINT",
    "netfilter.family": "VARCHAR",
    "netfilter.hook": "VARCHAR",
    "netfilter.table": "VARCHAR",
    "netfilter.chain": "VARCHAR",
    "netfilter.rule": "VARCHAR",
    "policy.namespace": "VARCHAR",
    "policy.name": "VARCHAR",
    "explanation": "VARCHAR",
    "conntrack.state": "VARCHAR",
    "conntrack.orig.dst.address": "VARCHAR",
    "conntrack.orig.dst.port": "USMALLINT",
    "duration_ns": "UBIGINT",
    "mark": "UINTEGER",
}
"""What records have that `tracer flows` did not write: those of drops and of followed packets."""

COLUMNS = {
    **OTHER_COMMANDS,
    **{name: _TYPES[field.kind] for name, field in FIELDS.items() if field.kind in _TYPES},
}
"""Name → type (docs/formats.md has the meanings). What a file does not have is NULL."""
COLUMNS = {name: COLUMNS[name] for name in (*FIELDS, *OTHER_COMMANDS) if name in COLUMNS}
