"""Checkpoints that belong to no layout: pieces of named tensors in safetensors files under a checked manifest.

- `pieces`     what a piece is, and how two pieces of one tensor meet
- `format`     names, headers and checksums of format 1
- `writer`     CheckpointWriter: copies to host memory, then writes beside the training
- `meeting`    how ranks agree through files that a checkpoint is complete
- `retention`  which checkpoints are kept
- `index`      which stored piece holds what
- `source`     where its files are read from
- `reader`     Checkpoint: verifies, and reads any piece from whatever pieces were saved
- `inspect`    a checkpoint as a table
- `remote`     a second home in an object store or on another file system: uploads, ranged reads
- `errors`     what can go wrong

Nothing here knows Megatron or DeepSpeed, communicates, or unpickles anything.
"""

from training.checkpoint.errors import CheckpointMismatch, DamagedCheckpoint, SaveFailed, UnknownFormat
from training.checkpoint.format import candidates, step_of
from training.checkpoint.pieces import Piece
from training.checkpoint.reader import Checkpoint, newest, set_aside
from training.checkpoint.retention import Retention
from training.checkpoint.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointMismatch",
    "CheckpointWriter",
    "DamagedCheckpoint",
    "Piece",
    "Retention",
    "SaveFailed",
    "UnknownFormat",
    "candidates",
    "newest",
    "set_aside",
    "step_of",
]
