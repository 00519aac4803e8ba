"""Netfilter rulesets as data, and what they say to one packet: no I/O, no root.

Text of `nft -a -j list ruleset`, `iptables-save -c` and `ipset save` becomes a
`model.Ruleset` (`read`); `evaluate` walks it as the kernel would.
"""
