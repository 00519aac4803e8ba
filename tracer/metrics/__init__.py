"""What Prometheus scrapes: sums of the flow records, and what tracer itself costs.

The only user of prometheus_client. Knows records, not the kernel: costs are handed in.
"""
