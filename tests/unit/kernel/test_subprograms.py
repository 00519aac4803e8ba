"""Subprograms are put behind the program that calls them, each once."""

import struct

from tracer.kernel.libbpf import EMPTY_PROGRAM
from tracer.kernel.subprograms import BPF_PSEUDO_CALL, SUBPROGRAMS, call, link, split

FIRST, SECOND, *_ = SUBPROGRAMS
SET_R0, EXIT = split(EMPTY_PROGRAM)


def target(linked: list[bytes], at: int) -> int:
    """Index of the instruction that the call at `at` leads to."""
    _, registers, _, offset = struct.unpack("<BBhi", linked[at])
    assert registers >> 4 == BPF_PSEUDO_CALL
    return at + 1 + offset


def test_program_without_subprograms_stays_as_it_is() -> None:
    assert link(EMPTY_PROGRAM, {}.__getitem__) == EMPTY_PROGRAM


def test_each_subprogram_stands_once_however_often_it_is_called() -> None:
    body = call(SUBPROGRAMS[FIRST])
    linked = split(link(body + SET_R0 + body + EXIT, {FIRST: EMPTY_PROGRAM}.__getitem__))
    assert len(linked) == 4 + 2
    assert [target(linked, at) for at in (0, 2)] == [4, 4]
    assert linked[4:] == [SET_R0, EXIT]


def test_subprogram_calls_another() -> None:
    functions = {FIRST: call(SUBPROGRAMS[SECOND]) + EXIT, SECOND: EMPTY_PROGRAM}
    linked = split(link(call(SUBPROGRAMS[FIRST]) + EXIT, functions.__getitem__))
    assert target(linked, 0) == 2
    assert target(linked, 2) == 4
    assert linked[4:] == [SET_R0, EXIT]


def test_calls_of_helpers_stay() -> None:
    program = call(1) + EXIT
    assert link(program, {}.__getitem__) == program
