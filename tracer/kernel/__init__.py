"""The only users of bcc, libbpf, libpcap and ctypes: headers, compile, load, attach, ring, maps."""
