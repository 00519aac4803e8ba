"""The short-lived process that compiles with bcc, loads, attaches, hands over and ends.

LLVM is about 100 MB resident and dead weight after the load, so it never enters the
long-lived process. Called as `python -m tracer.kernel.worker FD`: reads one Program as JSON
from stdin, answers on the Unix socket FD with one JSON line and the descriptors of maps,
programs and links (SCM_RIGHTS), in the order that the answer names them.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import json
import os
import socket
import sys
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tracer.errors import TracerError
from tracer.kernel import libbpf
from tracer.kernel.attach import attach, load_plain
from tracer.kernel.headers import KernelTypes, ensure
from tracer.kernel.hook_probe import refusal
from tracer.kernel.hooks import (
    HOOKS,
    KRETPROBE,
    NETFILTER,
    PLAIN_LOADS,
    RAW,
    TYPED,
    Hook,
    Way,
)
from tracer.kernel.program import Attached, MapInfo, Program
from tracer.kernel.source import splice
from tracer.kernel.subprograms import SUBPROGRAMS, link
from tracer.layout import bpf_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BCC_HINT = "Debian/Ubuntu: apt-get install python3-bpfcc; Fedora/RHEL: dnf install python3-bcc"


def _choose(hook: Hook, forced: str | None) -> tuple[Way, list[str]]:
    """The first way of `hook` that this kernel lets us take, and why not those before it."""
    refused: list[str] = []
    for way in hook.ways:
        if forced and way.kind != forced:
            continue
        reason = refusal(way)
        if not reason:
            return way, refused
        refused.append(f"{way.kind}: {reason}")
    raise TracerError(
        f"hook {hook.name}: no way to attach ({'; '.join(refused) or f'{forced} is unknown'})",
        "tracer hooks tells what this kernel offers",
    )


def _flags(program: Program, ways: dict[str, Way], types: KernelTypes) -> list[str]:
    """The compiler's flags: settings, how each hook attaches, what its arguments are."""
    defines = dict(program.defines)
    for hook in HOOKS:
        if hook.name in ways:
            kind = ways[hook.name].kind
            defines[f"TYPED_{hook.program}"] = str(int(kind == TYPED))
            defines[f"WAY_{kind}"] = "1"
            suffix = "typed" if kind in PLAIN_LOADS else "raw"
            for name in (f"follow_{suffix}", f"tell_{suffix}", "tell_death"):
                defines[f"CALL_{name}"] = str(SUBPROGRAMS[name])
    arguments = types.tracepoints.get("kfree_skb", ())
    if "enum skb_drop_reason" in arguments:
        defines["DROP_REASON"] = "1"
    if "struct sock *" in arguments:
        defines["DROP_RX_SK"] = "1"
    # 6.16 and later tell the error of one that failed.
    if len(types.tracepoints.get("tcp_retransmit_skb", ())) > 2:  # noqa: PLR2004 - socket, skb
        defines["RETRANSMIT_ERROR"] = "1"
    # 6.3 and later tell where: dd1b527831a3.
    if len(types.tracepoints.get("consume_skb", ())) > 1:
        defines["CONSUMED_LOCATION"] = "1"
    if types.origin == "headers":
        defines["KERNEL_HEADERS"] = "1"
    elif cast := libbpf.rdonly_cast():
        defines["SK_BUFF_BTF_ID"] = str(cast.sk_buff)
        defines["RDONLY_CAST_CALL"] = str(libbpf.RDONLY_CAST_CALL)
    return ["-Wno-everything"] + [f"-D{name}={text or 1}" for name, text in defines.items()]


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """bcc and LLVM write their complaints to descriptor 2: keep them for the error."""
    lines: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            lines += caught.read().decode(errors="replace").splitlines()


def _declare(lib: ct.CDLL) -> None:
    """Give ctypes the types of the functions that bcc's Python layer leaves undeclared."""
    lib.bpf_num_tables.argtypes, lib.bpf_num_tables.restype = [ct.c_void_p], ct.c_size_t
    for function, result in (
        (lib.bpf_table_name, ct.c_char_p),
        (lib.bpf_table_fd_id, ct.c_int),
        (lib.bpf_table_type_id, ct.c_int),
        (lib.bpf_table_key_size_id, ct.c_size_t),
        (lib.bpf_table_leaf_size_id, ct.c_size_t),
        (lib.bpf_table_max_entries_id, ct.c_size_t),
    ):
        function.argtypes, function.restype = [ct.c_void_p, ct.c_size_t], result


class Object:
    """A compiled BPF object: its maps exist, its programs are not loaded yet."""

    def __init__(self, text: str, flags: list[str], types: KernelTypes) -> None:
        """Compile; raises TracerError with the compiler's first error."""
        os.environ.update(types.environment)
        # bcc looks for headers in the current directory first: not in the user's, as root.
        os.chdir(types.source_dir)
        try:
            from bcc import BPF  # noqa: PLC0415 - after the environment is set
            from bcc.libbcc import lib  # noqa: PLC0415
        except ImportError as error:
            raise TracerError(f"bcc: {error}", BCC_HINT) from error
        _declare(lib)
        self._lib = lib
        complaints: list[str] = []
        try:
            with _captured_stderr() as complaints:
                self._bpf = BPF(text=text, cflags=flags)
        except Exception as error:
            told = next((line for line in complaints if "error:" in line), str(error))
            hint = "report this with `tracer doctor`"
            if "could not open bpf map" in told:
                hint = "does the kernel have memory for so large a map? (flows: --max-flows)"
            raise TracerError(f"bcc: compile: {told}", hint) from error

    def instructions(self, function: str) -> bytes:
        """The BPF instructions of one function."""
        name = function.encode()
        start = self._lib.bpf_function_start(self._bpf.module, name)
        return ct.string_at(start, self._lib.bpf_function_size(self._bpf.module, name))

    def linked(self, function: str) -> bytes:
        """The instructions of one function, and behind them the subprograms that it calls."""
        return link(self.instructions(function), self.instructions)

    def load_raw(self, function: str, kind: int = libbpf.BPF_PROG_TYPE_RAW_TRACEPOINT) -> int:
        """Load through bcc as a program whose fields are not checked; its fd. Raises OSError."""
        code = self.linked(function)
        with _captured_stderr() as log:
            name = function.encode()
            fd = self._lib.bcc_prog_load(kind, name, code, len(code), b"GPL", 0, 0, None, 0)
        if fd < 0:
            number = ct.get_errno()
            raise OSError(number, " | ".join([os.strerror(number), *log[-4:]]))
        return int(fd)

    def maps(self) -> list[tuple[MapInfo, int]]:
        """Every map with its fd."""
        module, lib = self._bpf.module, self._lib
        return [
            (
                MapInfo(
                    name=lib.bpf_table_name(module, index).decode(),
                    kind=lib.bpf_table_type_id(module, index),
                    key_bytes=lib.bpf_table_key_size_id(module, index),
                    value_bytes=lib.bpf_table_leaf_size_id(module, index),
                    max_entries=lib.bpf_table_max_entries_id(module, index),
                ),
                lib.bpf_table_fd_id(module, index),
            )
            for index in range(lib.bpf_num_tables(module))
        ]


def _attach(built: Object, hook: Hook, way: Way, *, deferred: bool) -> dict[str, int]:
    """Load and attach one hook; `program:` and `link:` of each function → fd. Raises OSError."""
    held: dict[str, int] = {}
    try:
        for function in hook.functions:
            at_exit = hook.runs_at_exit(function)
            fd = _load_function(built, function, way, at_exit=at_exit)
            held[f"program:{function}"] = fd
            # Netfilter programs are attached namespace by namespace, by the session.
            if way.kind != NETFILTER and not deferred:
                held[f"link:{function}"] = attach(fd, way.kind, way.target, at_exit=at_exit)
    except OSError:
        _close(held)
        raise
    return held


def _load_function(built: Object, function: str, way: Way, *, at_exit: bool) -> int:
    if way.kind == RAW:
        return built.load_raw(function)
    if way.kind == KRETPROBE:
        return built.load_raw(function, libbpf.BPF_PROG_TYPE_KPROBE)
    code, cast = built.linked(function), libbpf.rdonly_cast()
    if cast:
        code = cast.resolve(code)
    if way.kind == NETFILTER:
        return libbpf.load_netfilter(function, code)
    return load_plain(function, code, way.kind, way.target, at_exit=at_exit)


def _close(held: Mapping[str, int]) -> None:
    for fd in held.values():
        os.close(fd)


def _choose_all(program: Program) -> tuple[dict[Hook, tuple[Way, list[str]]], list[str]]:
    """Each hook of `program` with its way, and what is said of the optional ones without any."""
    chosen: dict[Hook, tuple[Way, list[str]]] = {}
    missing: list[str] = []
    for hook in HOOKS:
        if hook.name not in program.hooks:
            continue
        try:
            chosen[hook] = _choose(hook, program.attach.get(hook.name))
        except TracerError as error:
            if not hook.optional:
                raise
            if not hook.spare:
                missing.append(_without(hook, error.message))
    return chosen, missing


def _load(program: Program) -> tuple[dict[str, Any], list[int]]:
    """Compile, load and attach; a hook whose program the verifier refuses goes its next way."""
    types = ensure()
    chosen, missing = _choose_all(program)
    while True:
        ways = {hook.name: way for hook, (way, _) in chosen.items()}
        text = splice(bpf_dir(), [hook.program for hook in chosen], program.pcap_match)
        built = Object(text, _flags(program, ways, types), types)
        held: dict[str, int] = {}
        for hook, (way, refused) in chosen.items():
            try:
                held |= _attach(built, hook, way, deferred=hook.name in program.deferred)
            except OSError as error:
                refused.append(f"{way.kind}: {error}")
                _step_back(chosen, missing, hook)
                break
        else:
            return _answer(built, chosen, held, types, missing)
        _close(held)


def _step_back(chosen: dict[Hook, tuple[Way, list[str]]], missing: list[str], hook: Hook) -> None:
    """What the verifier refused goes its next way; without one, an optional hook is left out."""
    failed, refused = chosen[hook]
    rest = hook.ways[hook.ways.index(failed) + 1 :]
    problem = f"hook {hook.name}: cannot load: {refused[-1]}"
    if rest:
        chosen[hook] = rest[0], refused
    elif hook.optional:
        del chosen[hook]
        if not hook.spare:
            missing.append(_without(hook, problem))
    else:
        raise TracerError(problem, "tracer doctor tells what this kernel lacks")


def _without(hook: Hook, problem: str) -> str:
    return f"{problem}; not told: {hook.tells}"


def _answer(
    built: Object,
    chosen: Mapping[Hook, tuple[Way, list[str]]],
    held: Mapping[str, int],
    types: KernelTypes,
    missing: list[str],
) -> tuple[dict[str, Any], list[int]]:
    maps = built.maps()
    answer = {
        "maps": [asdict(info) for info, _ in maps],
        "held": list(held),
        "attached": [
            asdict(Attached(hook.name, way.kind, way.target, way.costs, tuple(refused), way.full))
            for hook, (way, refused) in chosen.items()
        ],
        "missing": missing,
        "drop_reasons": {str(value): name for value, name in types.drop_reasons.items()},
        "warnings": list(types.warnings),
    }
    return answer, [fd for _, fd in maps] + list(held.values())


def main() -> None:
    """Serve one request."""
    reply = socket.socket(fileno=int(sys.argv[1]))
    descriptors: list[int] = []
    try:
        answer, descriptors = _load(Program(**json.load(sys.stdin)))
    except TracerError as error:
        answer = {"error": error.message, "hint": error.hint}
    message = json.dumps(answer).encode()
    socket.send_fds(reply, [len(message).to_bytes(4, "little")], descriptors)
    reply.sendall(message)
    reply.close()
    # Skip bcc's and LLVM's tear-down: every descriptor is handed over or closed by the exit.
    os._exit(0)


if __name__ == "__main__":
    main()
