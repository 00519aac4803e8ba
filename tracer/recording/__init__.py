"""Raw columns on disk, with all it takes to render them again elsewhere (docs/recording.md).

A file format and the model, nothing else: no kernel, no root, no node.
"""

from tracer.recording.reader import Batch, DamagedError, Evidence, Loss, Recording
from tracer.recording.rules import Rules
from tracer.recording.writer import Recorder

__all__ = ["Batch", "DamagedError", "Evidence", "Loss", "Recorder", "Recording", "Rules"]
