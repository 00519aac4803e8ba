"""What can go wrong with a CRI runtime; apart from `cri` so that grpc is not needed to say so."""


class CriError(Exception):
    """The runtime did not answer; the text says which socket and why."""


class NoCriError(CriError):
    """Something answers on the socket, but it serves no CRI (a plain Docker host)."""
