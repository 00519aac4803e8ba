"""tracer: the eBPF node packet tracer for Kubernetes."""

__version__ = "0.1.0"
