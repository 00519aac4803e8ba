"""What netfilter tells by netlink (nfnetlink): conntrack entries and events, rules, traces.

Sockets are opened in a namespace by whoever knows how to enter it (inventory.namespaces.run_in);
here is what is sent, and what the answers mean.
"""
