"""Making many records without Python's collector of reference cycles, for they have none."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is looked through for cycles meanwhile; also a decorator, of what takes not long.

    Nor right after: what was made counts as old, or the first look would be at all of it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
            gc.enable()
