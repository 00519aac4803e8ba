"""What becomes of a hook whose program the kernel refuses."""

import pytest

from tracer.errors import TracerError
from tracer.kernel import worker
from tracer.kernel.hooks import HOOKS

BY_NAME = {hook.name: hook for hook in HOOKS}


def step_back(name, way):
    hook, missing = BY_NAME[name], []
    chosen = {hook: (hook.ways[way], [f"{hook.ways[way].kind}: too large"])}
    worker._step_back(chosen, missing, hook)
    return hook, chosen, missing


def test_the_next_way_is_taken():
    hook, chosen, missing = step_back("skb-drop", 0)
    assert chosen == {hook: (hook.ways[1], ["tp_btf: too large"])}
    assert not missing


def test_an_optional_hook_without_another_way_is_left_out_and_that_is_said():
    hook, chosen, missing = step_back("nf-hook", -1)
    assert not chosen
    (said,) = missing
    assert said.startswith("hook nf-hook: cannot load: kretprobe: too large; not told: ")
    assert hook.tells in said


def test_a_hook_that_is_needed_ends_the_run():
    with pytest.raises(TracerError, match="hook skb-drop: cannot load: raw_tp: too large"):
        step_back("skb-drop", 1)
