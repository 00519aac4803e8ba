"""The laboratory of the functional tests: real pods, namespaces, packets and the tracer itself."""
