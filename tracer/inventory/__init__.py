"""Which pod is it? The only users of pyroute2 and the CRI: pods, namespaces, devices.

`Inventory().scan()` reads the node once; `start()` follows it. Both give `tracer.model.Node`.
"""

from tracer.inventory.facts import SOURCES, Paths
from tracer.inventory.inventory import Inventory

__all__ = ["SOURCES", "Inventory", "Paths"]
