"""Names of kernel addresses, modules that come late, and addresses that belong to nobody."""

import pytest

from tracer.kernel import symbols
from tracer.kernel.symbols import Symbols

KERNEL = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 T kfree_skb
ffffffff81000200 t local_one
ffffffff81000300 D some_data
ffffffff81000400 T _etext
"""
MODULE = "ffffffffc0001000 t nft_do_chain\t[nf_tables]\n"


@pytest.fixture
def tables(tmp_path):
    kallsyms, modules = tmp_path / "kallsyms", tmp_path / "modules"
    kallsyms.write_text(KERNEL)
    modules.write_text("")
    return kallsyms, modules


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000100, "kfree_skb+0x0"),
        (0xFFFFFFFF810001FF, "kfree_skb+0xff"),
        (0xFFFFFFFF81000350, "local_one+0x150"),
        (0xFFFFFFFF81000400, "0xffffffff81000400"),
        (0xFFFFFFFFC0001008, "0xffffffffc0001008"),
        (0x10, "0x10"),
    ],
)
def test_addresses_in_the_kernels_text_have_names(tables, address, name):
    assert Symbols(*tables).name(address) == name


def test_a_module_that_comes_later_is_read_once_asked_for(tables, monkeypatch):
    kallsyms, modules = tables
    known = Symbols(kallsyms, modules)
    kallsyms.write_text(KERNEL + MODULE)
    modules.write_text("nf_tables 8192 0 - Live 0xffffffffc0001000\n")
    assert known.name(0xFFFFFFFFC0001008) == "0xffffffffc0001008"
    monkeypatch.setattr(symbols, "AGAIN_S", 0.0)
    assert known.name(0xFFFFFFFFC0001008) == "nft_do_chain+0x8 [nf_tables]"
    assert known.name(0xFFFFFFFFC0003000) == "0xffffffffc0003000"


def test_hidden_addresses_make_an_empty_table(tables):
    kallsyms, modules = tables
    kallsyms.write_text("0000000000000000 T _stext\n0000000000000000 T kfree_skb\n")
    known = Symbols(kallsyms, modules)
    assert len(known) == 0
    assert known.name(0xFFFFFFFF81000100) == "0xffffffff81000100"
