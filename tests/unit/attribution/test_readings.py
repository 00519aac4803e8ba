"""The thread that reads rules outlives whatever it cannot read."""

import threading

import pytest

from tracer.attribution import readings
from tracer.attribution.readings import Readings
from tracer.errors import TracerError
from tracer.model import Namespace, Node

NODE = Node("n", 4, namespaces={4: Namespace(4, "node", 1)})


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(3, "no such process"), "no such process"),
        (TracerError("nft: broken"), "nft: broken"),
        (KeyError("expr"), "please report: KeyError: 'expr'"),
    ],
)
def test_a_reading_that_fails_is_told_and_the_next_one_works(monkeypatch, error, told):
    warnings, done = [], threading.Semaphore(0)
    fails = iter([True, False])

    def look(*_):
        if next(fails):
            raise error
        return readings._Signs(7, {}, tables=False, legacy=False)

    monkeypatch.setattr(readings, "netns_path", lambda *_: "/proc/1/ns/net")
    monkeypatch.setattr(readings, "run_in", look)
    reader = Readings(lambda: NODE, done.release, warnings.append)
    try:
        for generation in (0, 7):
            assert reader.reading(4, readings._now_ns()) is None
            assert done.acquire(timeout=10)
            assert reader.reading(4, 0).generation == generation
    finally:
        reader.close()
    (warning,) = warnings
    assert told in warning
