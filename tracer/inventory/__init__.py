"""The only users of pyroute2, CRI and psutil: pods, namespaces, devices, addresses."""
