"""Ways that need no kernel to be judged."""

import errno

import pytest

from tracer.kernel import kprobes
from tracer.kernel.hooks import HOOKS, PLAIN_LOADS
from tracer.kernel.loader import Loaded
from tracer.kernel.program import Attached


def loaded(*attached):
    return Loaded({}, attached, (), {}, [], {}, ())


def test_a_run_by_a_full_substitute_is_no_partial_answer():
    full = Attached("nf-hook", "fexit", "nf_hook_slow", refused=("nf_link: too old",), full=True)
    other = Attached("skb-drop", "raw_tp", "kfree_skb", refused=("tp_btf: no BTF",))
    assert not loaded(full).degraded
    assert loaded(full, other).degraded


def test_only_the_second_of_two_functions_runs_at_the_exit():
    at_exit = {f for hook in HOOKS for f in hook.functions if hook.runs_at_exit(f)}
    assert at_exit == {"nf_leave"}


def test_the_preferred_way_of_every_hook_loads_plainly():
    assert all(hook.ways[0].kind in PLAIN_LOADS for hook in HOOKS)


def test_a_kernel_without_kprobes_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(kprobes, "PMU", tmp_path)
    with pytest.raises(OSError, match="this kernel has no kprobes") as raised:
        kprobes.attach(3, "nf_hook_slow", at_exit=False)
    assert raised.value.errno == errno.EOPNOTSUPP


def test_the_bit_of_a_return_probe(monkeypatch, tmp_path):
    (tmp_path / "format").mkdir()
    (tmp_path / "format/retprobe").write_text("config:3\n")
    monkeypatch.setattr(kprobes, "PMU", tmp_path)
    assert kprobes._exit_bit() == 8
