"""Where metrics are served: an address, loopback unless it says otherwise."""

from __future__ import annotations

import errno
import re
import socket
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>\d+)")
_LAST_PORT = 65535


def address(text: str) -> tuple[str, int]:
    """`:9100`, `9100`, `0.0.0.0:9100`, `[::1]:9100` → (host, port); without a host, loopback.

    Port 0 takes any free one. TracerError for anything else.
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found and int(found["port"]) <= _LAST_PORT:
        return found["six"] or found["host"] or LOOPBACK, int(found["port"])
    raise TracerError(
        f"--metrics '{text}': not an address", "write it as :9100, 0.0.0.0:9100 or [::1]:9100"
    )


class Server:
    """Answers scrapes on a thread of its own until it is closed."""

    def __init__(self, where: tuple[str, int], registry: CollectorRegistry) -> None:
        """Listen; TracerError when the address cannot be had."""
        from prometheus_client import start_http_server  # noqa: PLC0415 - 60 ms, and optional

        host, port = where
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, socket.gaierror) as error:
            hint = "is another tracer or exporter running? choose another port"
            if error.errno != errno.EADDRINUSE:
                hint = "choose an address of this machine and a port above 1023"
            raise TracerError(
                f"--metrics {shown(host, port)}: {(error.strerror or str(error)).lower()}", hint
            ) from error
        self.url = f"http://{shown(host, self._server.server_port)}/metrics"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def shown(host: str, port: int) -> str:
    """`host:port`, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
