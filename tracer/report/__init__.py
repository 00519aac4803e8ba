"""Questions to the files that tracer wrote, answered by DuckDB: files in, no live node.

The only user of DuckDB. Nothing here writes a file, loads an extension or uses the network.
"""
