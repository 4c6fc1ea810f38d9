"""Run a command as N ranks over these nodes, watch them, start them again. Never knows what the command computes.

Start with `supervisor.run`, which the launcher calls; then, from the outside in:

- `config`       what a recipe's `cluster:` section may say
- `supervisor`   attempt after attempt, events, signals, the final `Outcome`
- `policy`       what exit codes mean, and what to do about a failure (pure)
- `resizing`     which nodes carry the next attempt: waits, shrinks, grows; `sizes` (pure) says how far and when
- `pool`         the nodes that a run holds, spare ones included
- `diagnosis`    which rank is to blame for a failure or a hang (pure)
- `evidence`     what ranks say of themselves in a hang, and whom it points to (pure); `stacks` asks a node's ranks,
                 `hang` all of them, and writes the report
- `survey`       a short command once on every node of a running cluster
- `listening`    which addresses processes listen on
- `memory`       whether the kernel killed a rank because memory ran out
- `session`      a connection to Ray: private, or joined by address
- `authentication`  the token that we show, and the refusal of heads that let everybody in
- `jobs`         submitting the launcher itself to a cluster: Ray Jobs
- `leaving`      when ranks save and leave early: a stop, more nodes, nodes that go away, a lost head
- `awake`        a clock that stands while this process does
- `head`         whether Ray's head is alive, and which nodes it is to take away
- `local`        the private Ray: loopback, token, no traces; all of Ray's internals that we touch
- `placement`    one bundle and one agent a node, reserved together, in order of address
- `preview`      which nodes a run would get now
- `attempt`      all ranks of one attempt, seen through the agents
- `agent`        the actor on each node
- `processes`    one node's ranks: start, heartbeats, logs, end (no Ray); `output` follows rank 0's log
- `standby`      one more process a node, which has imported everything and forks ranks; `memory` says if there is room
- `children`     processes that die with this one; `die_with_parent` is the small program that starts them
- `leftovers`    ends whole process trees, even when the driver was killed
- `signals`      SIGTERM and Ctrl-C as requests
- `errors`       everything this room raises on purpose

What a rank may rely on (environment, exit codes, heartbeat file) is in `supervisor.run`'s docstring.
Ray is imported only inside functions, so that reading a recipe does not load it.
"""

from cluster.config import ClusterConfig
from cluster.errors import ClusterError, UserError
from cluster.supervisor import Outcome, run

__all__ = ["ClusterConfig", "ClusterError", "Outcome", "UserError", "run"]
