"""A second home of a run's checkpoints, behind an fsspec URL: object stores, or a folder such as an NFS mount.

- `store`    the few operations that every store has, with their bounds
- `source`   a checkpoint read from there in ranges, only what is asked for
- `folder`   a run's place in the store: which checkpoints are whole, retention, and the files of the run beside them
- `notes`    how the ranks of a run agree that all files of a checkpoint have arrived
- `upload`   Uploader: this rank's files, beside the training, again and again until they are there

    URL/NAME/
      recipe.yaml, tokenizer.model, events.jsonl, metrics.jsonl
      checkpoints/step-00000200/     the files of the local one; manifest.json and its digest come last

An object store has no rename: a checkpoint exists there when manifest.json.sha256 does.
"""

from training.checkpoint.remote.folder import RemoteFolder, is_checkpoint_url
from training.checkpoint.remote.source import RemoteSource
from training.checkpoint.remote.store import RemoteStore, StorageUnreachable
from training.checkpoint.remote.upload import Uploader

__all__ = [
    "RemoteFolder",
    "RemoteSource",
    "RemoteStore",
    "StorageUnreachable",
    "Uploader",
    "is_checkpoint_url",
]
