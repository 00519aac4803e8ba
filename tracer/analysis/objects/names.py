"""Names that programs compute: hashes of chains and devices, from the names of objects."""

from __future__ import annotations

import base64
import hashlib

CALICO_LIMIT = 28
"""Longest name of an iptables chain."""


def _base32(text: str, length: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]


def service_hash(namespace: str, name: str, port: str, transport: str) -> str:
    """What follows KUBE-SVC-, -SVL-, -EXT-, -FW-; `port` is the port's name, maybe empty."""
    return _base32(f"{service_port_name(namespace, name, port)}{transport}", 16)


def endpoint_hash(namespace: str, name: str, port: str, transport: str, endpoint: str) -> str:
    """What follows KUBE-SEP-; `endpoint` is `10.244.0.8:8080` or `[fd00::8]:8080`."""
    return _base32(f"{service_port_name(namespace, name, port)}{transport}{endpoint}", 16)


def service_port_name(namespace: str, name: str, port: str) -> str:
    """`namespace/name:port`, without the colon where the port has no name."""
    return f"{namespace}/{name}:{port}" if port else f"{namespace}/{name}"


def nft_service_name(namespace: str, name: str, port: str, transport: str) -> str:
    """What follows `service-`, `local-`, … in the chains of kube-proxy's nftables mode."""
    rest = f"{namespace}/{name}/{transport}/{port}"
    return f"{_base32(rest, 8)}-{rest}"


def calico_chain(prefix: str, identity: str) -> str:
    """A chain of Calico's iptables mode: `cali-pi-` and what the policy is called."""
    whole = prefix + identity
    if len(whole) < CALICO_LIMIT or (len(whole) == CALICO_LIMIT and not identity.startswith("_")):
        return whole
    digest = base64.urlsafe_b64encode(hashlib.sha256(identity.encode()).digest()).decode()
    return f"{prefix}_{digest[: CALICO_LIMIT - 1 - len(prefix)]}"


def calico_policies(namespace: str, name: str) -> tuple[str, ...]:
    """What Calico calls a NetworkPolicy, newest form first."""
    return f"knp/{namespace}/{name}", f"{namespace}/knp.default.{name}"


def calico_device(namespace: str, pod: str) -> str:
    """The node's end of a pod's veth pair."""
    digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False)
    return f"cali{digest.hexdigest()[:11]}"


def cni_chain(network: str, container: str, prefix: str = "CNI-") -> str:
    """A chain of the CNI plugins bridge (`CNI-`) and portmap (`CNI-DN-`)."""
    digest = hashlib.sha512(f"{network}{container}".encode()).hexdigest()
    return f"{prefix}{digest[: 28 - len(prefix)]}"
