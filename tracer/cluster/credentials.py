"""Who we are for the API server, if anybody. Light: nothing is loaded where there is nobody."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from pathlib import Path

    from tracer.cluster.access import Access

IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


def configured(kubeconfig: Path | None = None) -> bool:
    """Whether there is anybody to ask, as far as can be told without asking."""
    return bool(_named(kubeconfig) or os.environ.get(IN_CLUSTER))


def _named(kubeconfig: Path | None) -> str:
    return str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG", "")


def connect(kubeconfig: Path | None = None) -> Access | None:
    """Credentials of `kubeconfig`, else of $KUBECONFIG, else of the pod that we are; else None.

    Nothing is asked yet. TracerError where a kubeconfig was named and cannot be used.
    """
    if not configured(kubeconfig):
        return None
    named = _named(kubeconfig)
    # 30 MB and a tenth of a second, for those who use it.
    from kubernetes.client import ApiClient, Configuration  # noqa: PLC0415
    from kubernetes.config import (  # noqa: PLC0415
        ConfigException,
        load_incluster_config,
        new_client_from_config,
    )

    from tracer.cluster.access import KubernetesAccess  # noqa: PLC0415

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
