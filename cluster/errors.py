"""What can go wrong between "run this command" and its end, each with the exit code the launcher should end with."""

from __future__ import annotations


class ClusterError(Exception):
    """The environment failed: Ray did not start, a head cannot be reached, nodes are gone. One line, exit code 1."""

    exit_code = 1


class UserError(ClusterError):
    """The request cannot work as it stands. One line that says how to mend it, exit code 2."""

    exit_code = 2


class RayStartError(ClusterError):
    """The embedded Ray did not come up."""


class HeadUnreachable(ClusterError):
    """Nothing that speaks Ray answers at the given address."""


class OpenHead(UserError):
    """A head that answers without authentication, which nobody has allowed."""


class JobUnknown(UserError):
    """The head knows no job of that name."""


class NodesUnavailable(ClusterError):
    """The cluster has the nodes, but they are busy or gone and did not come (back) in time."""


class LaunchError(ClusterError):
    """A node could not start its ranks: log directory not writable, disk full."""


class ImpossiblePlacement(UserError):
    """The ranks cannot be placed as asked on any state of this cluster."""


class CommandNotFound(UserError):
    """The program or its working directory does not exist on a node."""
