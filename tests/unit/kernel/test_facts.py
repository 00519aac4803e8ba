from btf_writer import BtfWriter

from tracer.kernel import facts
from tracer.kernel.btf import Btf, Kind


def test_tracepoints_are_their_arguments_without_data():
    w = BtfWriter()
    integer = w.int("int", 4)
    u32 = w.typedef("u32", w.int("unsigned int", 4))
    skb = w.ptr(w.modifier(Kind.CONST, w.forward("sk_buff")))
    reason = w.enum("skb_drop_reason", SKB_DROP_REASON_NOT_SPECIFIED=2)
    void_ptr = w.ptr(0)
    names = w.ptr(w.ptr(integer))

    def tracepoint(name, *params):
        w.typedef(f"btf_trace_{name}", w.ptr(w.prototype(0, void_ptr, *params)))

    tracepoint("kfree_skb", skb, void_ptr, reason)
    tracepoint("cpu_idle", u32, integer, names)
    tracepoint("nothing")
    w.typedef("btf_trace_not_a_function", integer)
    assert facts.tracepoints(Btf(w.blob())) == {
        "cpu_idle": ("u32", "int", "int **"),
        "kfree_skb": ("struct sk_buff *", "void *", "enum skb_drop_reason"),
        "nothing": (),
    }


def test_tracepoints_of_modules():
    base = BtfWriter()
    base.int("int", 4)
    void_ptr = base.ptr(0)
    module = BtfWriter(base)
    chain = module.ptr(module.struct("nft_chain", 0))
    module.typedef("btf_trace_nft", module.ptr(module.prototype(0, void_ptr, chain)))
    btf = Btf(base.blob())
    btf.add_module(module.blob())
    assert facts.tracepoints(btf) == {"nft": ("struct nft_chain *",)}


def test_no_drop_reasons_without_the_enum():
    w = BtfWriter()
    w.int("int", 4)
    assert facts.drop_reasons(Btf(w.blob())) == {}


def test_drop_reasons_of_the_core_and_of_subsystems():
    w = BtfWriter()
    w.enum(
        "skb_drop_reason",
        SKB_NOT_DROPPED_YET=0,
        SKB_CONSUMED=1,
        SKB_DROP_REASON_NOT_SPECIFIED=2,
        SKB_DROP_REASON_NETFILTER_DROP=11,
        SKB_DROP_REASON_MAX=12,
        SKB_DROP_REASON_SUBSYS_MASK=0xFFFF0000,
    )
    w.enum("skb_drop_reason_subsys", SKB_DROP_REASON_SUBSYS_CORE=0, MAC80211=1, OPENVSWITCH=3)
    w.enum("ovs_drop_reason", OVS_DROP_LAST_ACTION=0x30001)
    w.enum("___mac80211_drop_reason", ___RX_CONTINUE=1, ___RX_DROP_U_MIC_FAIL=0x10001)
    w.enum("unrelated_drop_reason", UNRELATED=0x70001, SMALL=5)
    assert facts.drop_reasons(Btf(w.blob())) == {
        0: "SKB_NOT_DROPPED_YET",
        1: "SKB_CONSUMED",
        2: "NOT_SPECIFIED",
        11: "NETFILTER_DROP",
        0x10001: "RX_DROP_U_MIC_FAIL",
        0x30001: "OVS_DROP_LAST_ACTION",
    }


def test_drop_reasons_of_a_module():
    base = BtfWriter()
    base.enum("skb_drop_reason", SKB_CONSUMED=1)
    base.enum("skb_drop_reason_subsys", SKB_DROP_REASON_SUBSYS_OPENVSWITCH=3)
    module = BtfWriter(base)
    module.enum("ovs_drop_reason", OVS_DROP_EXPLICIT=0x30003)
    btf = Btf(base.blob())
    btf.add_module(module.blob())
    assert facts.drop_reasons(btf) == {1: "SKB_CONSUMED", 0x30003: "OVS_DROP_EXPLICIT"}
