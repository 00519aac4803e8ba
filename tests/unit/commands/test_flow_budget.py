"""What --max-cpu takes."""

import pytest

from tracer.commands.flow_budget import cpu_percent
from tracer.errors import TracerError


def test_a_share_of_one_cpu():
    assert [cpu_percent(text) for text in ("2%", "0.5 %", "150%")] == [2, 0.5, 150]


@pytest.mark.parametrize("text", ["2", "0%", "-1%", "", "two%", "1e3%"])
def test_anything_else_is_refused(text):
    with pytest.raises(TracerError, match="--max-cpu"):
        cpu_percent(text)
