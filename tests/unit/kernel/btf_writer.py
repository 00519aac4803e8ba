"""A small BTF writer, the opposite of tracer.kernel.btf, for tests that need no kernel."""

import struct

from tracer.kernel.btf import HEADER, MAGIC, Kind


class BtfWriter:
    """Each method adds a type and returns its id as the blob counts."""

    def __init__(self, base=None):
        self.base = base
        self.next_id = base.next_id if base else 1
        self.strings_start = len(base.strings) if base else 0
        # A split BTF shares the base's first string, the empty one.
        self.strings = b"" if base else b"\0"
        self.types = b""

    def name(self, text):
        if not text:
            return 0
        offset = self.strings_start + len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(self, kind, name="", size_or_type=0, count=0, *, flag=False, words=()):
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack("=3I", self.name(name), info, size_or_type)
        self.types += struct.pack(f"={len(words)}I", *(word & 0xFFFFFFFF for word in words))
        self.next_id += 1
        return self.next_id - 1

    def int(self, name, size):
        return self.add(Kind.INT, name, size, words=[size * 8])

    def ptr(self, target):
        return self.add(Kind.PTR, "", target)

    def typedef(self, name, target):
        return self.add(Kind.TYPEDEF, name, target)

    def modifier(self, kind, target, name=""):
        return self.add(kind, name, target)

    def forward(self, name, *, union=False):
        return self.add(Kind.FWD, name, flag=union)

    def array(self, target, length, index=1):
        return self.add(Kind.ARRAY, words=[target, index, length])

    def prototype(self, returns, *params):
        words = [word for param in params for word in (0, param)]
        return self.add(Kind.FUNC_PROTO, "", returns, len(params), words=words)

    def record(self, name, size, *members, kind=Kind.STRUCT):
        """`members`: (name, type id, bit offset) or (name, type id, bit offset, bit size)."""
        bitfields = any(len(member) == 4 for member in members)
        words = []
        for member, target, offset, *bits in members:
            width = bits[0] << 24 if bits else 0
            words += [self.name(member), target, width | offset]
        return self.add(kind, name, size, len(members), flag=bitfields, words=words)

    def struct(self, name, size, *members):
        return self.record(name, size, *members)

    def union(self, name, size, *members):
        return self.record(name, size, *members, kind=Kind.UNION)

    def enum(self, name, size=4, *, signed=False, **values):
        words = [word for key, value in values.items() for word in (self.name(key), value)]
        return self.add(Kind.ENUM, name, size, len(values), flag=signed, words=words)

    def enum64(self, name, *, signed=False, **values):
        words = []
        for key, value in values.items():
            words += [self.name(key), value, value >> 32]
        return self.add(Kind.ENUM64, name, 8, len(values), flag=signed, words=words)

    def blob(self):
        types, strings = len(self.types), len(self.strings)
        header = HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, types, types, strings)
        return header + self.types + self.strings
