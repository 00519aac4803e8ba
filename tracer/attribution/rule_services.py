"""Services as kube-proxy's rules on this node tell them: their names without the Kubernetes API."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.analysis.objects import ruleset_services
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.attribution.cost import cpu_s
from tracer.errors import TracerError
from tracer.model import ClusterView
from tracer.netfilter.rule_programs import legacy_tables, list_service_rules, nft_generation

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = "rules"
"""`service.source` of what is named so."""
PERIOD_S = 5.0
"""Between two looks at whether the rules have changed."""
SHARE = 1 / 100
"""Most of one CPU that reading them may take."""
LEGACY_S = 60
"""Of iptables-legacy nobody tells a change: it is read again so often."""
STOP_S = 1.0


class RuleServices:
    """Follows the rules of the caller's network namespace, in a thread of its own.

    Stands where a `Cluster` would: `view` has Services and nothing else.
    """

    def __init__(self) -> None:
        """Nothing is read before `start`."""
        self.view = ClusterView()
        self.version = 0
        self.warnings: tuple[str, ...] = ()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, on_change: Callable[[], None]) -> None:
        """Read the rules now and whenever they have changed; `on_change` from the thread."""
        self._thread = threading.Thread(
            target=self._run, args=(on_change,), name="rule-services", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; one under way is left to its end."""
        self._stopped.set()
        if self._thread:
            self._thread.join(STOP_S)

    def _run(self, on_change: Callable[[], None]) -> None:
        known, rest_s = (-1, 0), 0.0
        while not self._stopped.wait(rest_s):
            try:
                now, cost_s = _generation(), 0.0
                if now != known:
                    known, cost_s = now, self._read(on_change)
            except (OSError, TracerError) as error:
                self.warnings = (f"services of kube-proxy's rules: {error}",)
                self.version += 1
                on_change()
                return
            rest_s = max(PERIOD_S, cost_s / SHARE)

    def _read(self, on_change: Callable[[], None]) -> float:
        """Read once; what it cost in CPU seconds."""
        began_s = cpu_s()
        printed = list_service_rules()
        texts = dict(printed.texts)
        ruleset = Reader().read(Texts(texts.pop("nft").encode(), **texts))
        found, by_address = ruleset_services(ruleset)
        services = {key: replace(service, source=RULES) for key, service in found.items()}
        self.warnings = printed.warnings
        if services != self.view.services:
            self.view = ClusterView(services=services, service_by_address=by_address)
            self.version += 1
            on_change()
        return cpu_s() - began_s


def _generation() -> tuple[int, int]:
    """What changes whenever the rules may have changed."""
    minute = int(time.monotonic()) // LEGACY_S if legacy_tables() else 0
    return nft_generation(), minute
