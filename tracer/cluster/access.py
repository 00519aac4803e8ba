"""How the API server is reached: credentials, TLS, and requests whose answers are streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

import urllib3

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_S = 10.0
METADATA_ONLY = (
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.5"
)
METADATA_EVENTS = (
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5"
)


class Access(Protocol):
    """Somebody who can ask the API server."""

    def get(
        self, path: str, query: Mapping[str, str], accept: str, timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        """GET, the body unread; urllib3's HTTPError where nobody answers."""


class KubernetesAccess:
    """Requests with the credentials of a `kubernetes.client.ApiClient`."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - a client without types
        self._client = client
        self._pool: urllib3.PoolManager = client.rest_client.pool_manager

    def get(
        self, path: str, query: Mapping[str, str], accept: str, timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        """GET; `timeout_s` is the longest silence."""
        configuration = self._client.configuration
        headers = {"Accept": accept, "Accept-Encoding": "gzip", "User-Agent": "tracer"}
        # Asked for each time: this is where expired tokens are replaced.
        for setting in configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        return self._pool.request(
            "GET",
            f"{configuration.host}{path}?{urlencode(query)}",
            headers=headers,
            preload_content=False,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=timeout_s),
        )
