"""Become the command in argv, but die when the agent does: `python -I -S die_with_parent.py PARENT_PID COMMAND...`

A process of its own rather than Popen's `preexec_fn`, which is unsafe in an agent full of threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept across execve
PR_SET_PTRACER = 0x59616D61  # likewise: where Yama restricts it, the agent's py-spy may still read a hanging rank

if __name__ == "__main__":
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, int(sys.argv[1]), 0, 0, 0)  # fails without Yama, where nothing is needed
    if os.getppid() != int(sys.argv[1]):  # the agent died before the line above
        sys.exit(1)
    # An agent inherits Ray's blocked SIGINT and its own ignored one; the command starts with a clean slate.
    for inherited in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(inherited, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvp(sys.argv[2], sys.argv[2:])
