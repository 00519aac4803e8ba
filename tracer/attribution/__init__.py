"""Which rule decided a packet's fate: the kernel's trace or a reading of the rules, and the packet.

`tables` keeps the trace switched on where it is wanted, `readings` reads rulesets in a thread of
its own, `naming` joins both with what the hooks saw.
"""
