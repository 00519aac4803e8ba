"""The questions that `tracer report` asks of the views `flows` and `ways` (store.py).

Each is SQL that anyone may copy.

A packet between two pods whose nodes both ran tracer is in two records, one at each end: sums by
pod want both, sums by pair of ends take the larger.
"""

from __future__ import annotations

from dataclasses import dataclass

POD = """coalesce(nullif(concat_ws('/', "k8s.pod.namespace", "k8s.pod.name"), ''),
    "netns.name", 'netns ' || netns, '?')"""
IS_DROP = "(coalesce(verdict, '') = 'dropped' OR coalesce(type, '') = 'drop')"
FORWARDED = f"FILTER (NOT {IS_DROP})"
DROPPED = f"FILTER {IS_DROP}"
SERVICE = """coalesce(
    nullif(concat_ws('/', "service.namespace", "service.name"), '')
        || coalesce(':' || "service.port", ''),
    nullif(regexp_extract(concat_ws(' ', "netfilter.rule", explanation),
        '([a-z0-9.-]+/[a-z0-9.-]+(?::[a-z0-9-]+)?) has no (?:local )?endpoints', 1), ''),
    "conntrack.orig.dst.address" || coalesce(':' || "conntrack.orig.dst.port", ''),
    "dst.address" || coalesce(':' || "dst.port", ''))"""
RULE = """nullif(concat_ws(' ', "netfilter.family", "netfilter.table", "netfilter.chain",
    "netfilter.hook", "netfilter.rule",
    'policy ' || nullif(concat_ws('/', "policy.namespace", "policy.name"), '')), '')"""


@dataclass(frozen=True, slots=True)
class Summary:
    """One table of the report."""

    name: str
    title: str
    about: str
    none: str
    """What is said when there are no rows."""
    text: str
    """SQL, with `{top}` for how many rows."""

    def sql(self, top: int) -> str:
        """The question, for at most `top` rows."""
        return self.text.replace("{top}", str(top))


OVERVIEW = Summary(
    "nodes",
    "Nodes",
    "What the records are, by node. Packets of pod to pod count at both ends.",
    "no records",
    f"""
SELECT coalesce("k8s.node.name", '?') AS node, count(*) FILTER (way = 0) AS records,
    min(time) AS first, max(coalesce(end_time, time)) AS last,
    sum(packets) {FORWARDED} AS packets, sum(bytes) {FORWARDED} AS bytes,
    sum(packets) {DROPPED} AS dropped_packets, max("sample.rate") AS sample_rate
FROM ways GROUP BY 1 ORDER BY bytes DESC NULLS LAST, node LIMIT {{top}}
""",
)

TOP_TALKERS = Summary(
    "top_talkers",
    "Top talkers",
    "Pods by bytes sent and received.",
    "no traffic",
    f"""
WITH sums AS (
    SELECT {POD} AS pod, coalesce(direction, 'egress') AS direction, {IS_DROP} AS is_drop,
        sum(packets) AS packets, sum(bytes) AS bytes
    FROM ways GROUP BY ALL)
SELECT pod,
    coalesce(sum(bytes) FILTER (direction = 'egress' AND NOT is_drop), 0) AS sent_bytes,
    coalesce(sum(bytes) FILTER (direction = 'ingress' AND NOT is_drop), 0) AS received_bytes,
    coalesce(sum(packets) FILTER (direction = 'egress' AND NOT is_drop), 0) AS sent_packets,
    coalesce(sum(packets) FILTER (direction = 'ingress' AND NOT is_drop), 0) AS received_packets,
    coalesce(sum(packets) FILTER (is_drop), 0) AS dropped_packets
FROM sums GROUP BY pod
ORDER BY sent_bytes + received_bytes DESC, dropped_packets DESC, pod LIMIT {{top}}
""",
)

DROPS = Summary(
    "drops",
    "Drops by pod, reason and rule",
    "Packets that died on a node: whose, why in the kernel's words, and which code or rule did it.",
    "no drops",
    f"""
SELECT {POD} AS pod, coalesce("drop.reason", '?') AS reason, {RULE} AS rule,
    "drop.location" AS location, sum(packets) AS packets, sum(bytes) AS bytes,
    count(DISTINCT "k8s.node.name") AS nodes, max(coalesce(end_time, time)) AS last
FROM flows WHERE {IS_DROP}
GROUP BY ALL ORDER BY packets DESC, pod, reason LIMIT {{top}}
""",
)

REASONS = Summary(
    "drop_reasons",
    "Drops by reason",
    "All dropped packets by the kernel's reason.",
    "no drops",
    f"""
SELECT coalesce("drop.reason", '?') AS reason, sum(packets) AS packets, sum(bytes) AS bytes,
    count(DISTINCT {POD}) AS pods
FROM flows WHERE {IS_DROP} GROUP BY ALL ORDER BY packets DESC, reason LIMIT {{top}}
""",
)

SLOW = Summary(
    "slowest_paths",
    "Slowest paths",
    "Pairs of ends by the worse half of their round trips (TCP), and by transit of the node.",
    "no record carries tcp.rtt_ns or transit.count",
    """
SELECT coalesce(nullif(concat_ws('/', "k8s.src.namespace", "k8s.src.pod.name"), ''),
        "src.address", '?') AS source,
    coalesce(nullif(concat_ws('/', "k8s.dst.namespace", "k8s.dst.pod.name"), ''),
        "dst.address", '?') AS destination,
    transport, count(*) AS records,
    quantile_cont("tcp.rtt_ns", 0.5)::UBIGINT AS rtt_p50_ns, max("tcp.rtt_ns") AS rtt_max_ns,
    (sum("transit.sum_ns") / sum("transit.count"))::UBIGINT AS transit_mean_ns,
    max("transit.max_ns") AS transit_max_ns
FROM ways WHERE "tcp.rtt_ns" IS NOT NULL OR "transit.count" IS NOT NULL
GROUP BY ALL
ORDER BY greatest(coalesce(rtt_p50_ns, 0), coalesce(transit_mean_ns, 0)) DESC,
    source, destination LIMIT {top}
""",
)

NO_ENDPOINTS = Summary(
    "services_without_endpoints",
    "Services without endpoints",
    "Services whose packets were dropped or refused because nothing stands behind them.",
    "no drop names a Service without endpoints",
    f"""
SELECT {SERVICE} AS service, sum(packets) AS packets,
    count(DISTINCT coalesce("k8s.src.namespace" || '/' || "k8s.src.pod.name", "src.address"))
        AS clients, min(time) AS first, max(coalesce(end_time, time)) AS last
FROM flows
WHERE {IS_DROP} AND (
    regexp_matches(concat_ws(' ', "netfilter.rule", explanation), 'no (local )?endpoints', 'i')
    OR regexp_matches("netfilter.chain", 'no-endpoint', 'i'))
GROUP BY ALL ORDER BY packets DESC, service LIMIT {{top}}
""",
)

CONVERSATIONS = Summary(
    "conversations",
    "Conversations",
    "Who sends to whom. Addresses get the one pod's name that any node knew them by.",
    "no traffic",
    f"""
WITH ends AS (
    SELECT nullif(concat_ws('/', "k8s.src.namespace", "k8s.src.pod.name"), '') AS src_pod,
        "src.address" AS src,
        nullif(concat_ws('/', "k8s.dst.namespace", "k8s.dst.pod.name"), '') AS dst_pod,
        "dst.address" AS dst, coalesce(direction, 'egress') AS direction, {IS_DROP} AS is_drop,
        sum(packets) AS packets, sum(bytes) AS bytes
    FROM ways GROUP BY ALL),
known AS (SELECT src AS address, src_pod AS pod FROM ends WHERE src_pod IS NOT NULL
    UNION ALL SELECT dst, dst_pod FROM ends WHERE dst_pod IS NOT NULL),
names AS (SELECT address, any_value(pod) AS pod FROM known
    GROUP BY address HAVING count(DISTINCT pod) = 1),
sides AS (
    SELECT coalesce(src_pod, s.pod, src, '?') AS source,
        coalesce(dst_pod, d.pod, dst, '?') AS destination, direction,
        sum(packets) FILTER (NOT is_drop) AS packets, sum(bytes) FILTER (NOT is_drop) AS bytes,
        sum(packets) FILTER (is_drop) AS dropped
    FROM ends LEFT JOIN names s ON s.address = src LEFT JOIN names d ON d.address = dst
    GROUP BY ALL)
SELECT source, destination, coalesce(max(bytes), 0) AS bytes, coalesce(max(packets), 0) AS packets,
    coalesce(sum(dropped), 0) AS dropped_packets
FROM sides GROUP BY ALL
ORDER BY bytes DESC, dropped_packets DESC, source, destination LIMIT {{top}}
""",
)

LOSSES = Summary(
    "lost",
    "Lost",
    "Events that tracer could not tell, as it wrote into the files.",
    "nothing was lost",
    """
SELECT source, sum(count) AS count, count(DISTINCT file) AS files
FROM losses GROUP BY source ORDER BY count DESC, source LIMIT {top}
""",
)

WIDTHS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400)
MOST_STEPS = 96


def step_s(span_s: float) -> int:
    """Width of the timeline's steps for a period of `span_s`: at most `MOST_STEPS` of them."""
    return next((width for width in WIDTHS_S if span_s / width < MOST_STEPS), WIDTHS_S[-1])


def timeline(width_s: int) -> str:
    """Bytes and dropped packets of every `width_s`; `start_s` is since 1970."""
    return f"""
SELECT (epoch_ns(time) // {width_s * 10**9} * {width_s})::BIGINT AS start_s,
    coalesce(sum(bytes) {FORWARDED}, 0) AS bytes,
    coalesce(sum(packets) {DROPPED}, 0) AS dropped_packets
FROM ways WHERE time IS NOT NULL GROUP BY 1 ORDER BY 1
"""


SUMMARIES = (
    OVERVIEW,
    TOP_TALKERS,
    REASONS,
    DROPS,
    NO_ENDPOINTS,
    SLOW,
    CONVERSATIONS,
    LOSSES,
)
