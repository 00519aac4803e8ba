"""The packet inside a tunnel's: IPIP, 6in4 and their like, GRE, VXLAN, Geneve."""

from __future__ import annotations

from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6

_ETH_P_TEB = 0x6558
_L2_BYTES, _ETHERTYPE_AT = 14, 12
_IPIP, _UDP, _IPV6, _GRE, _DSTOPTS = 4, 17, 41, 47, 60
_GRE_CHECKSUM, _GRE_KEY = 0x80, 0x20
_VNI_END = 15
"""Behind the UDP header four bytes, then the three of the number: VXLAN and Geneve alike."""
_VXLAN_PORTS, _GENEVE_PORT = (4789, 8472), 6081
"""As in bpf/tunnel.bpf.h."""


def inner_frame(frame: bytes) -> bytes | None:
    """An Ethernet frame whose packet is that inside the tunnel of `frame`; None without one.

    Its link-layer addresses are those of `frame`. Frames may be cut anywhere.
    """
    ethertype = int.from_bytes(frame[_ETHERTYPE_AT:_L2_BYTES], "big")
    found = _inside(ethertype, frame[_L2_BYTES:])
    if found is None:
        return None
    kind, packet = found
    return frame[:_ETHERTYPE_AT] + kind.to_bytes(2, "big") + packet


def tunnel_of(ethertype: int, packet: bytes) -> tuple[str, int | None]:
    """Kind and number (VNI, GRE's key) of the tunnel whose IP packet it is; ("", None) for none."""
    protocol, body = _body(ethertype, packet)
    if not _header(protocol, body)[0]:
        return "", None
    if protocol == _IPIP:
        return "ipip" if ethertype == ETH_P_IP else "ip4ip6", None
    if protocol == _IPV6:
        return "sit" if ethertype == ETH_P_IP else "ip6ip6", None
    if protocol == _GRE:
        has_key = bool(body[0] & _GRE_KEY)
        at = 8 if body[0] & _GRE_CHECKSUM else 4
        return "gre", int.from_bytes(body[at : at + 4], "big") if has_key else None
    name = "geneve" if body[2] << 8 | body[3] == _GENEVE_PORT else "vxlan"
    return name, int.from_bytes(body[12:15], "big") if len(body) >= _VNI_END else None


def _inside(ethertype: int, packet: bytes) -> tuple[int, bytes] | None:
    """EtherType and bytes of the packet inside an IP packet."""
    protocol, body = _body(ethertype, packet)
    kind, size = _header(protocol, body)
    if kind == _ETH_P_TEB:
        kind = int.from_bytes(body[size + _ETHERTYPE_AT : size + _L2_BYTES], "big")
        size += _L2_BYTES
    if kind not in (ETH_P_IP, ETH_P_IPV6) or len(body) <= size:
        return None
    return kind, body[size:]


def _body(ethertype: int, packet: bytes) -> tuple[int, bytes]:
    """Protocol and bytes of what follows the outer IP header."""
    if ethertype == ETH_P_IP and len(packet) > 20:  # noqa: PLR2004 - struct iphdr
        is_later = (packet[6] << 8 | packet[7]) & 0x1FFF
        return (0, b"") if is_later else (packet[9], packet[(packet[0] & 0xF) * 4 :])
    if ethertype == ETH_P_IPV6 and len(packet) > 48:  # noqa: PLR2004 - with an extension header
        protocol, at = packet[6], 40
        if protocol == _DSTOPTS:  # the limit of tunnels in tunnels
            protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
        return protocol, packet[at:]
    return 0, b""


def _header(protocol: int, body: bytes) -> tuple[int, int]:
    """What a tunnel's header says it carries, and how long it is; (0, 0) for no tunnel's."""
    if protocol in (_IPIP, _IPV6):
        return (ETH_P_IP if protocol == _IPIP else ETH_P_IPV6), 0
    if len(body) < 12:  # noqa: PLR2004 - the longest of those below, without options
        return 0, 0
    if protocol == _GRE and not body[1] & 7:
        return body[2] << 8 | body[3], 4 + 4 * sum(body[0] >> bit & 1 for bit in (7, 5, 4))
    port = body[2] << 8 | body[3]
    if protocol == _UDP and port in _VXLAN_PORTS:
        return _ETH_P_TEB, 16
    if protocol == _UDP and port == _GENEVE_PORT:
        return body[10] << 8 | body[11], 16 + (body[8] & 0x3F) * 4
    return 0, 0
