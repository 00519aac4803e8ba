"""Pure functions from kernel records to answers: no I/O, no root."""
