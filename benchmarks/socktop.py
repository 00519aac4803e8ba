"""The count of bcc's tcptop, where the kernel has no kprobes for tcptop itself.

tcptop adds up what TCP sockets send and receive, by process and 5-tuple, in hash maps that it
reads and empties once a second; it hooks tcp_sendmsg and tcp_cleanup_rbuf. This does the same with
bcc at the tracepoints sock_send_length and sock_recv_length (6.3), which are of all sockets: so UDP
is counted too, and it is called once a system call, not once a packet. Nothing is printed. Says
`ready` on stderr, ends on SIGINT.
"""

from __future__ import annotations

import os
import signal
import sys

from tracer.kernel.headers import ensure

EVERY_S = 1
SOURCE = """
struct socket_key {
    u32 pid;
    u32 saddr;
    u32 daddr;
    u16 lport;
    u16 dport;
    char name[16];
};
BPF_HASH(sent_bytes, struct socket_key);
BPF_HASH(received_bytes, struct socket_key);

static int describe(struct sock *sk, struct socket_key *key)
{
    u16 family = 0;

    bpf_probe_read_kernel(&family, sizeof(family), &sk->__sk_common.skc_family);
    if (family != 2)
        return 0;
    key->pid = bpf_get_current_pid_tgid() >> 32;
    bpf_get_current_comm(&key->name, sizeof(key->name));
    bpf_probe_read_kernel(&key->saddr, sizeof(u32), &sk->__sk_common.skc_rcv_saddr);
    bpf_probe_read_kernel(&key->daddr, sizeof(u32), &sk->__sk_common.skc_daddr);
    bpf_probe_read_kernel(&key->lport, sizeof(u16), &sk->__sk_common.skc_num);
    bpf_probe_read_kernel(&key->dport, sizeof(u16), &sk->__sk_common.skc_dport);
    return 1;
}

RAW_TRACEPOINT_PROBE(sock_send_length)
{
    struct socket_key key = {};
    int bytes = ctx->args[1];

    if (bytes > 0 && describe((struct sock *)ctx->args[0], &key))
        sent_bytes.increment(key, bytes);
    return 0;
}

RAW_TRACEPOINT_PROBE(sock_recv_length)
{
    struct socket_key key = {};
    int bytes = ctx->args[1];

    if (bytes > 0 && describe((struct sock *)ctx->args[0], &key))
        received_bytes.increment(key, bytes);
    return 0;
}
"""


def main() -> None:
    """Count until SIGINT."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    types = ensure()
    os.environ.update(types.environment)
    from bcc import BPF  # noqa: PLC0415 - after the environment is set

    include = "" if types.environment else "#include <net/sock.h>\n"
    bpf = BPF(text=include + SOURCE, cflags=["-Wno-everything"])
    print("ready", file=sys.stderr, flush=True)
    while signal.sigtimedwait([signal.SIGINT], EVERY_S) is None:
        for table in (bpf["sent_bytes"], bpf["received_bytes"]):
            list(table.items())
            table.clear()


if __name__ == "__main__":
    main()
