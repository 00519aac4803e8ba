from tracer.analysis.time import format_time


def test_nanoseconds_are_kept_and_padded():
    assert format_time(0) == "1970-01-01T00:00:00.000000000Z"
    assert format_time(1_700_000_000_000_000_042) == "2023-11-14T22:13:20.000000042Z"
