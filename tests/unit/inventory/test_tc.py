"""tc filters in the bytes of rtnetlink."""

import struct

from tracer.inventory import tc
from tracer.inventory.rtnl import HEADER, NLMSG_DONE
from tracer.model import TcFilter

_NEWQDISC, _NEWTFILTER = 36, 44
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3


class Kernel:
    """A route socket of a kernel with these qdiscs and filters, as messages by request."""

    def __init__(self, qdiscs, filters):
        self._qdiscs, self._filters, self._answer = qdiscs, filters, b""
        self.asked = []

    def send(self, request):
        _, kind, *_ = HEADER.unpack_from(request)
        _, ifindex, _, parent, _ = tc.TCMSG.unpack_from(request, HEADER.size)
        if kind == tc.RTM_GETTFILTER:
            self.asked.append((ifindex, parent))
            self._answer = b"".join(self._filters.get((ifindex, parent), ()))
        else:
            self._answer = b"".join(self._qdiscs)
        self._answer += HEADER.pack(HEADER.size, NLMSG_DONE, 0, 1, 0)

    def recv(self, _size):
        return self._answer


def attribute(kind, content, flags=0):
    data = struct.pack("=HH", 4 + len(content), kind | flags) + content
    return data + bytes(-len(data) % 4)


def message(kind, ifindex, parent, name, options=b""):
    body = tc.TCMSG.pack(0, ifindex, 1, parent, 0) + attribute(1, name)
    if options:
        body += attribute(2, options, flags=0x8000)
    return HEADER.pack(HEADER.size + len(body), kind, 2, 1, 0) + body


def actions(*names):
    return b"".join(attribute(n, attribute(1, name)) for n, name in enumerate(names, 1))


QDISCS = [
    message(_NEWQDISC, 1, 0xFFFFFFFF, b"noqueue\0"),
    message(_NEWQDISC, 2, 0xFFFFFFF1, b"clsact\0"),
    message(_NEWQDISC, 3, 0xFFFFFFF1, b"ingress\0"),
]


def test_which_devices_can_have_filters():
    assert tc.read_classified(Kernel(QDISCS, {})) == {2: "clsact", 3: "ingress"}


def test_filters_with_their_names_and_actions():
    program = attribute(7, b"cil_from_container\0") + attribute(11, (77).to_bytes(4, "little"))
    mirrors = attribute(2, actions(b"mirred\0", b"gact\0"), flags=0x8000)
    kernel = Kernel(
        QDISCS,
        {
            (2, INGRESS): [
                message(_NEWTFILTER, 2, INGRESS, b"bpf\0"),  # its priority
                message(_NEWTFILTER, 2, INGRESS, b"bpf\0", program),
            ],
            (2, EGRESS): [message(_NEWTFILTER, 2, EGRESS, b"matchall\0", mirrors)],
            (3, INGRESS): [
                message(_NEWTFILTER, 3, INGRESS, b"u32\0", attribute(4, bytes(4))),  # a table
                message(_NEWTFILTER, 3, INGRESS, b"u32\0", attribute(7, actions(b"mirred\0"))),
                message(_NEWTFILTER, 3, INGRESS, b"cgroup\0", attribute(1, b"what?")),
            ],
        },
    )
    assert tc.read_filters(kernel) == (
        TcFilter(2, "ingress", "bpf", "cil_from_container", 77),
        TcFilter(2, "egress", "matchall", actions=("mirred", "gact")),
        TcFilter(3, "ingress", "u32", actions=("mirred",)),
        TcFilter(3, "ingress", "cgroup"),
    )
    assert (3, EGRESS) not in kernel.asked, "it would tell the ingress again"


def test_in_words():
    assert TcFilter(2, "ingress", "bpf", "cil_from_container", 77).text == (
        "bpf cil_from_container id 77"
    )
    assert TcFilter(2, "egress", "matchall", actions=("mirred", "gact")).text == (
        "matchall: mirred, gact"
    )
