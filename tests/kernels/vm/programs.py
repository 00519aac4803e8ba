"""Running other programs, their failures told as tracer tells its own."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from pathlib import Path


def run(*argv: str | Path, cwd: Path | None = None, hint: str, timeout_s: float = 180) -> str:
    """Stdout of `argv`; TracerError with the last line of its stderr when it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except FileNotFoundError as error:
        raise TracerError(f"{words[0]}: not installed", hint) from error
    except subprocess.TimeoutExpired as error:
        raise TracerError(
            f"{shlex.join(words[:2])} …: not done in {timeout_s:.0f} s", hint
        ) from error
    except subprocess.CalledProcessError as error:
        told = (error.stderr.strip().splitlines() or [f"exit {error.returncode}"])[-1]
        raise TracerError(f"{shlex.join(words[:2])} …: {told}", hint) from error
    return done.stdout
