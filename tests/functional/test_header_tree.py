"""bcc compiles against the tree of the running kernel, and what it reads with it is true."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tracer.kernel import headers, tree
from tracer.kernel.btf import RECORDS, Btf
from tracer.kernel.cdump import CDump

bcc = pytest.importorskip("bcc", reason="python3-bpfcc (bcc) is not installed")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF needs root"),
    pytest.mark.skipif(not (headers.BTF_DIR / "vmlinux").exists(), reason="kernel without BTF"),
]

PROGRAM = rb"""
struct seen { u64 time; u32 ifindex, netns, len, saddr, mark; u16 dport, zone; };
BPF_HASH(per_device, u32, u64);
BPF_PERCPU_ARRAY(count, u64, 1);
BPF_RINGBUF_OUTPUT(ring, 8);
BPF_TABLE("hash", int, int, inner, 16);
BPF_ARRAY_OF_MAPS(outer, "inner", 4);
BPF_STACK_TRACE(stacks, 128);

RAW_TRACEPOINT_PROBE(netif_receive_skb)
{
	struct sk_buff *skb = (void *)ctx->args[0];
	struct seen seen = { .time = bpf_ktime_get_ns() };
	struct nf_conn *ct = (void *)(skb->_nfct & ~7UL);
	u32 zero = 0;

	seen.ifindex = skb->dev->ifindex;
	seen.netns = skb->dev->nd_net.net->ns.inum;
	seen.len = skb->len;
	if (ct) {
		struct nf_conntrack_tuple *tuple = &ct->tuplehash[0].tuple;

		bpf_probe_read_kernel(&seen.saddr, 4, &tuple->src.u3.ip);
		bpf_probe_read_kernel(&seen.dport, 2, &tuple->dst.u.udp.port);
#ifdef HAS_nf_conn__mark
		bpf_probe_read_kernel(&seen.mark, 4, &ct->mark);
#endif
#ifdef HAS_nf_conn__zone
		bpf_probe_read_kernel(&seen.zone, 2, &ct->zone.id);
#endif
	}
	per_device.increment(seen.ifindex);
	u64 *total = count.lookup(&zero);
	if (total)
		++*total;
	stacks.get_stackid(ctx, 0);
	ring.ringbuf_output(&seen, sizeof(seen), 0);
	return 0;
}
"""
SEND = r"""
set -e
ip link set lo up
nft -f - <<'RULES'
table ip t {
	chain raw_zone { type filter hook output priority -300; ct zone set 5; }
	chain set_mark { type filter hook output priority 0; ct mark set 7; }
}
RULES
echo "{\"netns\": $(stat -Lc %i /proc/self/ns/net)}"
exec 3<>/dev/udp/127.0.0.1/4242
echo x >&3
"""


@pytest.fixture
def types(tmp_path, monkeypatch):
    made = headers.ensure([tmp_path / "cache"])
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    # bcc looks for <linux/version.h> and the like in the current directory first.
    monkeypatch.chdir(made.source_dir)
    return made


def test_the_compiler_proves_every_offset(types, capfd):
    btf = Btf((headers.BTF_DIR / "vmlinux").read_bytes())
    dump = CDump(btf)
    records = [record for name in tree.STRUCTS if (record := btf.find(name, RECORDS))]
    for record in records:
        dump.add(record)
    proofs = dump.asserts(records)
    assert len(proofs) > 500
    bcc.BPF(text="\n".join(proofs).encode(), cflags=["-Wall", "-Wno-unused-function"])
    assert "warning" not in capfd.readouterr().err
    with pytest.raises(Exception, match="Failed to compile"):
        bcc.BPF(text=b'_Static_assert(sizeof(struct sk_buff) == 1, "so proofs can fail");')
    assert types.origin == "btf"


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
@pytest.mark.usefixtures("types")
def test_what_a_program_reads_is_true(capfd):
    program = bcc.BPF(text=PROGRAM, cflags=["-Wall", "-Wno-unused-function"])
    assert "warning" not in capfd.readouterr().err
    seen = []
    ring = program[b"ring"]
    ring.open_ring_buffer(lambda _context, data, _size: seen.append(ring.event(data)))
    command = ["unshare", "-n", "bash", "-c", SEND]
    sent = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    netns = json.loads(sent.stdout)["netns"]
    program.ring_buffer_poll(200)
    ours = [event for event in seen if event.netns == netns and event.dport]
    first = ours[0]
    assert (first.ifindex, first.len, first.mark, first.zone) == (1, 30, 7, 5)
    assert first.saddr.to_bytes(4, "little") == bytes([127, 0, 0, 1])
    assert first.dport.to_bytes(2, "little") == (4242).to_bytes(2, "big")
    assert 0 <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) - first.time < 20e9
    assert program[b"per_device"][program[b"per_device"].Key(1)].value >= len(ours)
    assert sum(program[b"count"][0]) >= len(ours)
    program.cleanup()


def test_a_warm_cache_answers_at_once(types):
    directory = Path(types.source_dir).parent
    started = time.perf_counter()
    assert headers.ensure([directory]) == types
    assert time.perf_counter() - started < 0.03
