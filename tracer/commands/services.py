"""--service NAMESPACE/NAME: the Service's addresses and ports become part of the packet filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.objects import ruleset_services
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.analysis.service_filter import service_filter
from tracer.errors import TracerError
from tracer.netfilter.rule_programs import list_rules
from tracer.recording import Batch
from tracer.session import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from tracer.cluster.cluster import Cluster
    from tracer.model import EndpointSlice, Service
    from tracer.recording import Recording

LISTED_S = 20.0
"""How long the API may take to list Services."""


def add_service(parser: argparse.ArgumentParser) -> None:
    """--service."""
    parser.add_argument(
        "--service",
        metavar="NS/NAME",
        help="packets of a Service: to its addresses and ports, and to its endpoints'",
    )


def with_service(args: argparse.Namespace, cluster: Cluster | None) -> list[str]:
    """The packet filter of `args`, limited to its --service; TracerError where there is none."""
    if not args.service:
        return list(args.filter)
    nowhere = "neither the Kubernetes API (--kubeconfig) nor kube-proxy's rules on this node tell"
    return _limited(args, *_known(cluster), f"{nowhere} of any")


def with_recorded_service(args: argparse.Namespace, recording: Recording) -> list[str]:
    """The same, by what the recorder knew of Services when it met this one first."""
    if not args.service:
        return list(args.filter)
    services: dict[str, Service] = {}
    slices: Mapping[str, EndpointSlice] = {}
    for item in recording:
        if isinstance(item, Batch):
            services |= item.context.node.services
            slices = item.context.node.endpoint_slices
        if args.service in services:
            break
    return _limited(args, services, slices, "the recorder knew of none")


def _limited(
    args: argparse.Namespace,
    services: Mapping[str, Service],
    slices: Mapping[str, EndpointSlice],
    nowhere: str,
) -> list[str]:
    words: list[str] = args.filter
    if args.service not in services:
        some = ", ".join(sorted(services)[:5])
        raise TracerError(
            f"--service '{args.service}': no such Service",
            f"write it as namespace/name: {some}" if some else nowhere,
        )
    expression, whole = service_filter(services[args.service], slices.values())
    if not expression:
        raise TracerError(
            f"--service '{args.service}': it has no address, and no ready endpoint",
            "a headless Service is selected by its pods: --selector",
        )
    if not whole or not slices:
        say(f"warning: service {args.service}: its endpoints are not selected, only itself")
    return [f"({expression}) and ({' '.join(words)})" if words else expression]


def _known(
    cluster: Cluster | None,
) -> tuple[Mapping[str, Service], Mapping[str, EndpointSlice]]:
    """Services by the API, else by the rules of kube-proxy, which tell of no endpoints."""
    if cluster is None:
        texts = dict(list_rules().texts)
        ruleset = Reader().read(Texts(texts.pop("nft").encode(), **texts))
        return ruleset_services(ruleset)[0], {}
    cluster.start()
    if not cluster.wait_synced(LISTED_S, ("services", "endpointslices")):
        trouble = "; ".join(cluster.warnings) or "no answer"
        raise TracerError(f"--service: Services are not known: {trouble}", "kubectl get services")
    return cluster.view.services, cluster.view.endpoint_slices
