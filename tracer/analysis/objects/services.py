"""Services as the node's own kube-proxy rules tell them, without the Kubernetes API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tracer.analysis.objects.answer import comments
from tracer.analysis.objects.names import nft_service_name, service_hash, service_port_name
from tracer.model import Service, ServicePort

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tracer.analysis.objects.answer import Question, Surroundings
    from tracer.analysis.ruleset.model import Rule, Ruleset, Set

SERVICE_PORT = r"(?P<namespace>[a-z0-9-]+)/(?P<name>[a-z0-9.-]+)(?::(?P<port>[A-Za-z0-9_.-]*))?"
"""`namespace/name:port`, as kube-proxy writes it."""

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_TARGET = re.compile(r"goto (?:service|external|firewall)-[A-Z2-7]{8}-([^/]+/[^/]+)/[^/]*/(.*)")
_PORTAL = re.compile(
    r"-A KUBE-(?:SERVICES|NODEPORTS|EXTERNAL-SERVICES|PROXY-FIREWALL) (?P<rest>.*)"
)
_PORTAL_COMMENT = re.compile(
    rf"{SERVICE_PORT}(?: (?P<what>cluster IP|external IP|loadbalancer IP|has no .*endpoints))?"
)
_NODE_PORT_CHAINS = ("KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES")


def service_key(transport: str, address: str, port: int) -> str:
    """Key of `Node.service_by_address`; without address: a NodePort."""
    return f"{transport}/{address}/{port}"


def services_by_chain(around: Surroundings) -> Mapping[str, str]:
    """Hash in the name of a chain, of either mode → `namespace/name:port`."""
    if "chains" not in around.memo:
        found: dict[str, str] = {}
        for service in around.node.services.values() if around.node else ():
            for port in service.ports:
                names = service.namespace, service.name, port.name
                found[service_hash(*names, port.transport)] = service_port_name(*names)
                found[nft_service_name(*names, port.transport)[:8]] = service_port_name(*names)
        for family in ("ip", "ip6"):
            for chain in ("KUBE-SERVICES", "KUBE-NODEPORTS"):
                found |= _jumps(around.rules(family, "nat", chain))
        found |= _endpoints(around, found)
        around.memo["chains"] = found
    return around.memo["chains"]


def _jumps(rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    """(hash, `namespace/name:port`) of rules that jump to the chain of a Service."""
    for rule in rules:
        target = re.search(r"-j KUBE-(?:SVC|EXT|FW|SVL)-([A-Z2-7]{16})", rule.text)
        comment = _PORTAL_COMMENT.match(_comment(rule))
        if target and comment:
            names = comment["namespace"], comment["name"], comment["port"] or ""
            yield target[1], service_port_name(*names)


def _endpoints(around: Surroundings, services: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(hash of a KUBE-SEP-, `namespace/name:port`): the chains of the Services jump there."""
    for family in ("ip", "ip6"):
        for table in around.tables(family, "nat"):
            for name, chain in table.chains.items():
                service = (
                    services.get(name[9:]) if name.startswith(("KUBE-SVC", "KUBE-SVL")) else ""
                )
                for rule in chain.rules if service else ():
                    if target := re.search(r"-j KUBE-SEP-([A-Z2-7]{16})", rule.text):
                        yield target[1], service or ""


def _comment(rule: Rule) -> str:
    return next(iter(comments(rule)), "")


def packet_key(question: Question, name: str) -> str:
    """What a map of nftables mode has for the packet: `address/tcp/80`, or `tcp/80`."""
    packet = question.packet
    if packet is None:
        return ""
    end = f"{_PROTOCOLS.get(packet.protocol or 0, '')}/{packet.dport}"
    return end if name.endswith("nodeports") else f"{packet.daddr}/{end}"


def element_comments(question: Question, name: str) -> Mapping[str, str]:
    """Elements of a map of nftables mode: key as of `packet_key` → `namespace/name:port`.

    With `=` before the key: the element's verdict.
    """
    rule, memo = question.rule, question.around.memo
    place = rule.family, name
    if place not in memo:
        found: dict[str, str] = {}
        for table in question.around.tables(rule.family, rule.table):
            for key, comment, verdict in elements(table.sets.get(name)):
                found["/".join(key)] = comment
                found[f"={'/'.join(key)}"] = verdict
        memo[place] = found
    return memo[place]


def elements(one: Set | None) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(key, `namespace/name:port`, verdict) of each element of a verdict map of kube-proxy.

    The name is the element's comment, or it is in the name of the chain that it goes to.
    """
    for element in one.elements if one else ():
        key, value = element if isinstance(element, (list, tuple)) else (element, None)
        inner = key.get("elem", {}) if isinstance(key, dict) else {}
        comment = inner.get("comment", "")
        key = inner.get("val", key)
        parts = key.get("concat", [key]) if isinstance(key, dict) else [key]
        verdict = _verdict(value)
        if not comment and (found := _TARGET.fullmatch(verdict)):
            comment = f"{found[1]}:{found[2]}" if found[2] else found[1]
        yield tuple(map(str, parts)), comment, verdict


def _verdict(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, dict) and value:
        kind, inner = next(iter(value.items()))
        target = inner.get("target", "") if isinstance(inner, dict) else ""
        return f"{kind} {target}".strip()
    return str(value or "")


def ruleset_services(ruleset: Ruleset) -> tuple[Mapping[str, Service], Mapping[str, str]]:
    """Fill `Node.services` and `Node.service_by_address` from the rules, where the API is missing.

    What rules do not tell (traffic policies of a Service with endpoints, its type) stays default.
    """
    found: dict[str, _Found] = {}
    for service, port, address, what in _portals(ruleset):
        found.setdefault(service, _Found()).add(port, address, what)
    services = {key: one.service(key) for key, one in found.items()}
    by_address = {
        service_key(port.transport, address, number): key
        for key, one in services.items()
        for port in one.ports
        for address, number in (
            *((address, port.port) for address in (*one.addresses, *one.external_addresses)),
            *((("", port.node_port),) if port.node_port else ()),
        )
        if number
    }
    return services, by_address


class _Found:
    """What the rules say of one Service."""

    def __init__(self) -> None:
        self.addresses: dict[str, None] = {}
        self.external: dict[str, None] = {}
        self.ports: dict[tuple[str, str], list[int]] = {}

    def add(self, port: tuple[str, str, int], address: str, what: str) -> None:
        name, transport, number = port
        numbers = self.ports.setdefault((name, transport), [0, 0])
        if not address:
            numbers[1] = number
            return
        numbers[0] = number
        (self.addresses if what == "cluster" else self.external)[address] = None

    def service(self, key: str) -> Service:
        namespace, _, name = key.partition("/")
        ports = (ServicePort(port, kind, *numbers) for (port, kind), numbers in self.ports.items())
        external = (address for address in self.external if address not in self.addresses)
        addresses = tuple(self.addresses)
        return Service(namespace, name, "", addresses, tuple(external), tuple(ports))


_Portal = tuple[str, tuple[str, str, int], str, str]
"""`namespace/name`, (port's name, transport, number), address ("": NodePort), what it is."""


def _portals(ruleset: Ruleset) -> Iterator[_Portal]:
    for table in ruleset.tables.values():
        if table.name == "kube-proxy":
            for name in ("service-ips", "no-endpoint-services", "service-nodeports",
                         "no-endpoint-nodeports"):  # fmt: skip
                yield from _map_portals(table.sets.get(name), table.sets.get("cluster-ips"))
            continue
        for name in ("KUBE-SERVICES", *_NODE_PORT_CHAINS):
            for rule in table.chains[name].rules if name in table.chains else ():
                yield from _rule_portal(rule)


def _map_portals(one: Set | None, cluster_ips: Set | None) -> Iterator[_Portal]:
    known = set(map(str, cluster_ips.elements)) if cluster_ips else set()
    for key, comment, _verdict_of in elements(one):
        found = re.fullmatch(SERVICE_PORT, comment)
        if not found or not key[-1].isdecimal():
            continue
        address = key[0] if len(key) > 2 else ""  # noqa: PLR2004 - address, protocol, port
        port = found["port"] or "", key[-2], int(key[-1])
        what = "cluster" if address in known else "external"
        yield f"{found['namespace']}/{found['name']}", port, address, what


def _rule_portal(rule: Rule) -> Iterator[_Portal]:
    found = _PORTAL_COMMENT.fullmatch(_comment(rule))
    transport = re.search(r" -p (tcp|udp|sctp)\b", rule.text)
    number = re.search(r" --dport (\d+)\b", rule.text)
    if not (found and transport and number):
        return
    address = re.search(r" -d (\S+?)/(?:32|128)\b", rule.text)
    if not address and rule.chain not in _NODE_PORT_CHAINS:
        return
    what = "external" if (found["what"] or "").startswith(("external", "load")) else "cluster"
    if rule.table == "filter" and rule.chain in _NODE_PORT_CHAINS and address:
        what = "external"
    port = found["port"] or "", transport[1], int(number[1])
    yield f"{found['namespace']}/{found['name']}", port, address[1] if address else "", what
