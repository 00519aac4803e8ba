import numpy as np

from tracer.wall_time import NS_PER_S, time_text, time_texts


def test_nanoseconds_are_kept_and_padded():
    assert time_text(0) == "1970-01-01T00:00:00.000000000Z"
    assert time_text(1_700_000_000_000_000_042) == "2023-11-14T22:13:20.000000042Z"


def test_many_at_once_are_written_alike():
    seconds = 1_700_000_000 * NS_PER_S
    times = [0, 999_999_999, NS_PER_S, seconds + 42, seconds + 1_002_003, seconds + 999_000_000]
    assert time_texts(np.array(times)) == [time_text(one) for one in times]
    assert time_texts(np.array(times[::-1]).astype("M8[ns]")) == [*map(time_text, times[::-1])]
    assert time_texts(np.empty(0, np.int64)) == []
