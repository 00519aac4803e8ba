"""Targets of iptables-save → steps (iptables-extensions(8))."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ruleset import values
from tracer.analysis.ruleset.steps import Assign, Binary, Constant, Field, Nowhere, Take, Translate
from tracer.analysis.ruleset.xt_options import Option, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.analysis.ruleset.steps import Expression, Step

_VERDICTS = {
    "ACCEPT": "accept", "DROP": "drop", "RETURN": "return", "REJECT": "reject",
    "QUEUE": "queue", "NFQUEUE": "queue",
}  # fmt: skip
_CONTINUE = frozenset({
    "AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "DSCP", "ECN", "HL", "IDLETIMER", "LED", "LOG",
    "NFLOG", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL",
    "ULOG",
})  # fmt: skip
"""What changes neither verdict nor anything that a later rule of the same hook is likely to ask
for; DSCP, TOS, TTL and HL change a field, see `_FORGOTTEN`."""
_FORGOTTEN = {
    "DSCP": ("ip dscp", "ip6 dscp"), "TOS": ("ip dscp", "ip6 dscp"), "TTL": ("ip ttl",),
    "HL": ("ip6 hoplimit",),
}  # fmt: skip
_UNMODELLED = frozenset({
    "TPROXY", "SYNPROXY", "CLUSTERIP", "HMARK", "TARPIT", "DELUDE", "CHAOS", "NETMAP",
})  # fmt: skip
_ALL = 0xFFFFFFFF


def steps(target: Option, options: Sequence[Option]) -> Sequence[Step]:
    """What `-j target` (or `-g`) with these options does once every match said yes."""
    name = target.word
    words = {option.name: option for option in options}
    if name in _VERDICTS:
        return (Take(_VERDICTS[name]),)
    if name in _CONTINUE:
        return [Assign(field, Nowhere(target.text)) for field in _FORGOTTEN.get(name, ())]
    if name in _UNMODELLED:
        return (Take("unknown", " ".join([target.text, *(o.text for o in options)])),)
    if handler := _HANDLERS.get(name):
        return handler(words)
    # Anything else is a chain: its name is the user's.
    return (Take("goto" if target.name == "-g" else "jump", name),)


def _to(kind: str, option: str) -> Callable[[dict[str, Option]], Sequence[Step]]:
    return lambda words: (Translate(kind, *_goal(words[option].word if option in words else "")),)


def _chosen(kind: str) -> Callable[[dict[str, Option]], Sequence[Step]]:
    def handler(words: dict[str, Option]) -> Sequence[Step]:
        ports = words["--to-ports"].word if "--to-ports" in words else ""
        return (Translate(kind, Nowhere(kind), _port(ports)),)

    return handler


def _goal(text: str) -> tuple[Expression | None, Expression | None]:
    """`10.0.0.1:80`, `[fd00::1]:80`, `fd00::1`, `:80` → address and port."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return _address(address), _port(port.removeprefix(":"))
    if text.count(":") > 1:
        return _address(text), None
    address, _, port = text.partition(":")
    return _address(address), _port(port)


def _address(text: str) -> Expression | None:
    try:
        return Constant(values.address(text)) if text else None
    except ValueError:
        return Nowhere(text)


def _port(text: str) -> Expression | None:
    if not text:
        return None
    return Constant(int(text)) if text.isdigit() else Nowhere(text)


def _changed(old: Expression, cleared: int, new: Expression) -> Expression:
    """`(old & ~cleared) ^ new`."""
    return Binary("^", Binary("&", old, Constant(_ALL & ~cleared)), new)


def _mark(field: str) -> Callable[[dict[str, Option]], Sequence[Step]]:
    def handler(words: dict[str, Option]) -> Sequence[Step]:
        key = Field(field)
        if option := words.get("--set-xmark") or words.get("--set-mark"):
            value, mask = masked(option.word)
            return (Assign(field, _changed(key, mask, Constant(value)), lenient=True),)
        if field == "ct mark" and (moved := {"--save-mark", "--restore-mark"} & words.keys()):
            return _moved(moved.pop(), words)
        return (Assign(field, Nowhere(" ".join(words))),)

    return handler


def _moved(name: str, words: dict[str, Option]) -> Sequence[Step]:
    """CONNMARK between the packet's mark and the connection's, each through its mask."""
    masks = (words.get("--nfmask"), words.get("--ctmask"))
    packet, connection = (int(option.word, 0) if option else _ALL for option in masks)
    if name == "--save-mark":
        source, goal, taken, cleared = "meta mark", "ct mark", packet, connection
    else:
        source, goal, taken, cleared = "ct mark", "meta mark", connection, packet
    value = Binary("&", Field(source), Constant(taken))
    return (Assign(goal, _changed(Field(goal), cleared, value), lenient=True),)


def _untracked(words: dict[str, Option]) -> Sequence[Step]:
    """CT: `--notrack` is all that a later rule can see at once."""
    if "--notrack" not in words:
        return ()
    return (Assign("ct state", Constant(values.CT_STATES["untracked"])),)


_HANDLERS: dict[str, Callable[[dict[str, Option]], Sequence[Step]]] = {
    "DNAT": _to("dnat", "--to-destination"),
    "SNAT": _to("snat", "--to-source"),
    "MASQUERADE": _chosen("masquerade"),
    "REDIRECT": _chosen("redirect"),
    "MARK": _mark("meta mark"),
    "CONNMARK": _mark("ct mark"),
    "CT": _untracked,
    "NOTRACK": lambda _words: _untracked({"--notrack": Option("--notrack")}),
}
