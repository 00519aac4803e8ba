"""Boot a Debian kernel under QEMU with this machine's root as its userland, and run a command.

`catalog` gets a kernel, `initramfs` makes what it boots from, `machine` is the QEMU process,
`guest/` are the two scripts that run inside, `cli` is `scripts/kernels`.
"""
