"""Rule → Kubernetes object: which Service, policy, pod or network plugin put a rule there.

Nothing is asked of anyone: the names of chains, rules and sets say it, hashes are computed from
the names of Services and policies where those are known (docs/kubernetes.md has the table).
"""

from tracer.analysis.objects.answer import DEFAULT_DENY, RuleObject
from tracer.analysis.objects.lookup import RuleObjects
from tracer.analysis.objects.services import ruleset_services

__all__ = ["DEFAULT_DENY", "RuleObject", "RuleObjects", "ruleset_services"]
