"""scripts/test --arm64: what bcc makes of every command's programs for an arm64 kernel.

bcc's own front end compiles for another machine when ARCH says so: the types are those of
Debian's arm64 kernel, each offset is asserted, every hook is compiled in each of its ways.
Nothing is loaded: what an arm64 verifier says of it is not known from this. Kernels before 6.13
give a program and the subprogram that it calls 512 bytes of stack: more fails here, too.

exit codes: 0 all compiled; 1 something did not; 2 that kernel's package could not be had
"""

from __future__ import annotations

import argparse
import importlib
import os
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from vm import arm64
from ways import kinds_of

from tracer.errors import ExitCode, TracerError
from tracer.kernel import cache, facts, tree
from tracer.kernel.btf import Btf
from tracer.kernel.headers import KernelTypes
from tracer.kernel.hooks import HOOKS, NETFILTER
from tracer.kernel.source import splice
from tracer.kernel.subprograms import SUBPROGRAMS, call, split
from tracer.kernel.worker import Object, _flags
from tracer.layout import bpf_dir

MACHINE, PAGE_BYTES = "aarch64", 4096
FILTER = ("udp", "and", "net", "10.0.0.0/8")
COMMANDS = {
    "drops": ((), ("--pod=a/b", "-i", "eth0", "--reason=NO_SOCKET", *FILTER)),
    "flows": ((), ("--pod=a/b",)),
    "trace": (
        (),
        ("--standby", "--pod=a/b", "--first=3", *FILTER),
        ("--standby", "--inner", "--sample=1/10", "--first=3", "--tcp-flags=SYN", *FILTER),
    ),
}
"""Command → options: as it is mostly called, and with all that changes its program."""
STACK_BYTES, FRAME_BYTES = 512, 32
"""MAX_BPF_STACK of linux/filter.h, and what the verifier rounds a frame up to."""
LOADS_AND_STORES, ADD, FRAME = (1, 2, 3), 0x07, 10
"""Classes of instructions, `register += constant`, and the register that is the frame's end."""
PROOF = "#ifndef __aarch64__\n#error bcc did not take ARCH\n#endif\n"


def _types(directory: Path) -> KernelTypes:
    """The header tree of that kernel, made by tracer's own generator."""
    found = arm64.fetch()
    btf = Btf(found.btf)
    cache.store(directory, MACHINE, tree.files(btf, MACHINE, found.release, PAGE_BYTES), {})
    tracepoints, reasons = facts.tracepoints(btf), facts.drop_reasons(btf)
    print(f"arm64 {found.release}: {len(tracepoints)} tracepoints, {len(reasons)} drop reasons")
    return KernelTypes(directory / MACHINE, MACHINE, "btf", tracepoints, reasons, ())


def _program(command: str, options: tuple[str, ...]):
    """What `tracer COMMAND OPTION…` loads."""
    module = importlib.import_module(f"tracer.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    program = module._program(parser.parse_intermixed_args(options))
    return replace(program, defines={**program.defines, "NODE_NETNS": "4026531840U"})


def _frame_bytes(instructions: list[bytes]) -> int:
    """The stack of one function: how far below its end it reaches."""
    lowest = 0
    for code, registers, offset, constant in map(struct.Struct("<BBhi").unpack, instructions):
        if code & 7 in LOADS_AND_STORES and FRAME in (registers & 15, registers >> 4):
            lowest = min(lowest, offset)
        if code == ADD and constant >= -STACK_BYTES:
            lowest = min(lowest, constant)
    return -(lowest // FRAME_BYTES) * FRAME_BYTES


def _stack_bytes(built: Object, function: str) -> int:
    """Of a function and the subprogram that takes most."""
    code = split(built.instructions(function))
    called = [name for name, number in SUBPROGRAMS.items() if call(number) in code]
    return _frame_bytes(code) + max((_stack_bytes(built, name) for name in called), default=0)


def _sizes(types: KernelTypes, command: str, kind: str, options: tuple[str, ...]) -> str:
    """Of all hooks together, each in its way of `kind` or its only one; raises TracerError."""
    program = _program(command, options)
    hooks = [hook for hook in HOOKS if hook.name in program.hooks]
    ways = {
        hook.name: next((way for way in hook.ways if way.kind == kind), hook.ways[0])
        for hook in hooks
    }
    text = splice(bpf_dir(), [hook.program for hook in hooks], program.pcap_match)
    built = Object(PROOF + text, _flags(program, ways, types), types)
    functions = [name for hook in hooks for name in hook.functions]
    sizes = [len(split(built.instructions(name))) for name in functions]
    if not all(sizes):
        raise TracerError("a function came out empty", "bcc says why")
    stack, most = max((_stack_bytes(built, name), name) for name in functions)
    if stack > STACK_BYTES:
        raise TracerError(f"{most} takes {stack} bytes of stack", "put something into a map")
    return f"{sum(sizes)} instructions, {stack} bytes of stack"


def _compile_all(types: KernelTypes) -> int:
    """Print what each comes to; how many failed."""
    failed = 0
    for command, variants in COMMANDS.items():
        for options in variants:
            # Netfilter's links are the first way of their hook: compiled with the first kind.
            for kind in (kind for kind in kinds_of(command) if kind != NETFILTER):
                words = " ".join((f"{command} ({kind})", *options))
                try:
                    print(f"{words}: {_sizes(types, command, kind, options)}")
                except TracerError as error:
                    failed += 1
                    print(f"error: {words}: {error.message}", file=sys.stderr)
    return failed


def main() -> int:
    """The exit code."""
    argparse.ArgumentParser(
        prog="scripts/test --arm64",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="tracer-arm64-") as directory:
        try:
            types = _types(Path(directory))
        except TracerError as error:
            print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
            return ExitCode.UNUSABLE
        os.environ["ARCH"] = "arm64"
        return int(_compile_all(types) > 0)


if __name__ == "__main__":
    sys.exit(main())
