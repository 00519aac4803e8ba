"""A tool that does nothing: an empty program where a packet is handed to a device.

What it costs is the kernel's way into a tracepoint program, the least of any tool that is called
for each packet there. Says `ready` on stderr, ends on SIGINT.
"""

from __future__ import annotations

import signal
import sys

from tracer.kernel import libbpf
from tracer.kernel.hooks import TYPED

TRACEPOINT = "net_dev_start_xmit"


def main() -> None:
    """Attach, and wait; the descriptors go with the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    program = libbpf.load_typed("empty", libbpf.EMPTY_PROGRAM, TRACEPOINT)
    libbpf.attach_tracepoint(program, TYPED, TRACEPOINT)
    print("ready", file=sys.stderr, flush=True)
    signal.sigwait([signal.SIGINT])


if __name__ == "__main__":
    main()
