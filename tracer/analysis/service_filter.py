"""A Service as a tcpdump expression: its addresses and ports, and those of its endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.model import EndpointSlice, Service

MAX_ENDPOINTS = 64
"""A filter is a program in the kernel, whose length is limited."""


def service_filter(service: Service, slices: Iterable[EndpointSlice] = ()) -> tuple[str, bool]:
    """Packets to and from a Service, before DNAT and after, and whether all endpoints are in it.

    Empty where nothing is known that could be asked for: a headless Service without endpoints.
    """
    terms = dict.fromkeys(_own(service))
    endpoints = dict.fromkeys(
        _at(port.transport, port.port, (address,))
        for one in slices
        if (one.namespace, one.service) == (service.namespace, service.name)
        for port in one.ports
        for address in one.ready
    )
    whole = len(endpoints) <= MAX_ENDPOINTS
    if whole:
        terms |= endpoints
    return " or ".join(terms), whole


def _own(service: Service) -> Iterator[str]:
    addresses = (*service.addresses, *service.external_addresses)
    for port in service.ports:
        if addresses:
            yield _at(port.transport, port.port, addresses)
        if port.node_port:
            yield _at(port.transport, port.node_port, ())


def _at(transport: str, port: int, addresses: Iterable[str]) -> str:
    hosts = " or ".join(f"host {address}" for address in addresses)
    return f"({transport} port {port}{f' and ({hosts})' if hosts else ''})"
