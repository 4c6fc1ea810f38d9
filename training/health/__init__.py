"""Whether the ranks are well: who is slow, and whose numbers are wrong without an error.

- `watch`        Health: what the loop calls, and what becomes events
- `stragglers`   StragglerDetector: slower than its peers, for how long (pure)
- `work`         OwnWork: how long a rank works, waiting left out
- `integrity`    Integrity: equal replicas, and steps that come out the same twice
- `fingerprint`  an exact hash of a tensor, on its device
"""

from training.health.watch import Health

__all__ = ["Health"]
