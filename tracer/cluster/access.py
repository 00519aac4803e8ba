"""How the API server is reached: credentials, TLS, and requests whose answers are streams."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

import urllib3

from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONNECT_S = 10.0
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_EVENTS = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


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


def connect(kubeconfig: Path | None = None) -> KubernetesAccess | None:
    """Credentials of `kubeconfig`, else of $KUBECONFIG, else of the pod that we are; else None.

    Nothing is asked yet. TracerError where a kubeconfig was named and cannot be used.
    """
    named = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG", "")
    if not named and IN_CLUSTER not in os.environ:
        return None
    # 30 MB, for those who use it.
    from kubernetes.client import ApiClient, Configuration  # noqa: PLC0415
    from kubernetes.config import (  # noqa: PLC0415
        ConfigException,
        load_incluster_config,
        new_client_from_config,
    )

    try:
        if named:
            return KubernetesAccess(new_client_from_config(named, persist_config=False))
        configuration = Configuration()
        load_incluster_config(client_configuration=configuration)
        return KubernetesAccess(ApiClient(configuration))
    except Exception as error:
        if not named and isinstance(error, ConfigException):
            return None  # a pod without a token: not meant to ask
        # The client raises whatever it trips over: YAML's errors, KeyError, TypeError, OSError.
        raise TracerError(
            f"kubeconfig {named or 'of the pod'}: {str(error) or type(error).__name__}",
            "try it: kubectl --kubeconfig FILE get pods -A",
        ) from error
