"""Where records go: text, JSON lines, Hubble JSON."""
