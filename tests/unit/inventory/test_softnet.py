"""How many packets were received, by the kernel's own count."""

from __future__ import annotations

from tracer.inventory.softnet import receptions

TEXT = """\
372f00c3 00000000 00000033 00000000 00000000 00000000 00000000 00000000 00000000 00000000
0b65d52e 00000000 00000019 00000000 00000000 00000000 00000000 00000000 00000000 00000000
"""


def test_a_number_for_each_cpu(tmp_path):
    source = tmp_path / "softnet_stat"
    source.write_text(TEXT)
    assert receptions(source) == (0x372F00C3, 0x0B65D52E)


def test_a_kernel_that_does_not_tell(tmp_path):
    assert receptions(tmp_path / "missing") == ()
