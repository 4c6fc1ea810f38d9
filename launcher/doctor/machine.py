"""This machine without its accelerators: shared memory, file handles, cores, memory, disk, clock, compiler, rights.

Each check takes what it looks at, so that a test can hand it a poor one; none takes longer than DISK_SECONDS.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from cluster.memory import ROOT, machine_memory, memory_limit
from cluster.processes import usable_cores
from cluster.stacks import Target, collect
from launcher.doctor.findings import Finding, Status
from launcher.tables import size

SECTION = "machine"
MIB, GIB = 2**20, 2**30
DISK_SECONDS = 3.0
DISK_BYTES = 64 * MIB
FEWEST_HANDLES = 256  # torch, a rank's sockets and Ray's own come near it at two ranks
ENOUGH_HANDLES = 4096  # an agent's logs and pipes, and a TCP connection for each other rank
LEAST_SHARED = 64 * MIB  # Docker's default, at which NCCL and Ray's object store (75 MB) fail
ENOUGH_SHARED = GIB
LEAST_MEMORY, ENOUGH_MEMORY = 2 * GIB, 4 * GIB  # Ray's head takes 0.6 GB, a rank of a tiny model 0.7
LEAST_DISK, ENOUGH_DISK = GIB, 20 * GIB
SLOW_DISK = 50e6  # bytes a second: a checkpoint of 1.3B parameters (18 GB) takes 6 minutes
CLOCK_SECONDS = 1.0


def check_shared_memory(path: str = "/dev/shm") -> Finding:
    """Room in shared memory, where NCCL, Ray and heartbeats put things."""
    mend = "mount a larger one: mount -o remount,size=8G /dev/shm; in a container: docker run --shm-size=8g"
    try:
        usage = shutil.disk_usage(path)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        return _finding("shared memory", Status.FAIL, f"{path}: {error.strerror}", mend)
    text = f"{_gib(usage.free)} free of {_gib(usage.total)} in {path}"
    if not writable:
        return _finding("shared memory", Status.FAIL, f"{path} cannot be written", f"chmod 1777 {path}")
    return _finding("shared memory", *_graded(usage.free, LEAST_SHARED, ENOUGH_SHARED, text, mend))


def check_file_handles() -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if soft == resource.RLIM_INFINITY:
        return _finding("file handles", Status.OK, "unlimited (ulimit -n)")
    raised = hard == resource.RLIM_INFINITY or hard >= ENOUGH_HANDLES
    mend = "ulimit -n 65536" if hard == resource.RLIM_INFINITY else f"ulimit -n {hard}"
    if not raised:
        mend = "raise the hard limit: LimitNOFILE= in systemd, docker run --ulimit nofile=65536, /etc/security/limits.d"
    text = f"{soft:,} a process (ulimit -n), may be raised to {allowed}"
    return _finding("file handles", *_graded(soft, FEWEST_HANDLES, ENOUGH_HANDLES, text, mend))


def check_cores() -> Finding:
    """Cores that may be used, by affinity and by the cgroup's quota, beside those that there are."""
    all_, bound, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0)), usable_cores()
    quota = _quota()
    text = f"{usable} usable of {all_}"
    if bound < all_:
        text += f", bound to {bound}"
    if quota is not None and quota < bound:
        text += f", cgroup quota {quota:g}"
        if quota < usable:
            mend = f"set OMP_NUM_THREADS to {max(1, int(quota))} over the ranks of a node: more threads are throttled"
            return _finding("cores", Status.WARN, text, mend)
    if usable < 2:
        return _finding("cores", Status.WARN, text, "two ranks on one core take turns; use two cores or more")
    return _finding("cores", Status.OK, text)


def check_memory(root: Path = ROOT) -> Finding:
    """Memory that is left, on the machine and under the cgroup's limit."""
    total, limit = machine_memory(root), memory_limit(root)
    free = 0
    with suppress(OSError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    text = f"{_gib(free)} available of {_gib(total)}"
    if limit is not None and limit < total:
        text += f", cgroup limit {_gib(limit)}"
        free = min(free, limit)
    mend = "end other programs, or raise the container's limit (docker run --memory, the pod's resources.limits.memory)"
    return _finding("memory", *_graded(free, LEAST_MEMORY, ENOUGH_MEMORY, text, mend))


def check_disk(directory: Path, least: int = LEAST_DISK, enough: int = ENOUGH_DISK) -> list[Finding]:
    """Room and speed where runs go, and whether its file system has the same clock. Leaves nothing there."""
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    name = f"disk of {directory}"
    mend = "free some, or put runs elsewhere: --run.directory DIR (and `trestle doctor DIR` to try it)"
    try:
        free = shutil.disk_usage(place).free
        speed, difference = _write_and_remove(place / f".trestle-doctor-{os.getpid()}", min(DISK_BYTES, free // 2))
    except OSError as error:
        return [_finding(name, Status.FAIL, f"{place} cannot be written: {error.strerror}", mend)]
    text = f"{size(free)} free, {size(speed)}/s written and synced"
    status, text, mend = _graded(free, least, enough, text, mend)
    if status is Status.OK and speed < SLOW_DISK:
        status, mend = Status.WARN, "checkpoints will take long to write: use a faster disk, or save less often"
    findings = [_finding(name, status, text, mend)]
    if abs(difference) > CLOCK_SECONDS:
        words = f"the file system of {place} is {difference:+.1f} s off this machine's clock"
        findings.append(_finding("its clock", Status.WARN, words, "set both by NTP (chrony, systemd-timesyncd)"))
    return findings


def check_clock(now: float | None = None) -> Finding:
    """Whether the time can be right, and whether something keeps it so: tokens, TLS and S3 refuse wrong clocks."""
    now = time.time() if now is None else now
    mend = "set the clock by NTP: chrony or systemd-timesyncd"
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    newest = max(Path(__file__).stat().st_mtime, Path("/proc").stat().st_mtime - 86400.0)
    if now < newest - 86400.0:
        return _finding("clock", Status.FAIL, f"{shown}, which is before this program was installed", mend)
    synchronized = _kept_by_ntp()
    if synchronized is False:
        words = f"{shown}; the kernel does not know it as synchronized"
        return _finding("clock", Status.WARN, words, f"{mend}; needed where nodes compare times or S3 and TLS are used")
    return _finding("clock", Status.OK, shown + ("" if synchronized is None else ", kept by NTP"))


def check_name() -> Finding:
    """Whether this machine's own name leads to it: gloo and Ray ask for it."""
    name = socket.gethostname()
    mend = f"add a line `ADDRESS {name}` to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    try:
        address = socket.gethostbyname(name)
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as error:
        return _finding("own name", Status.WARN, f"{name}: {error.strerror}", mend)
    if address.startswith("127."):
        return _finding("own name", Status.OK, f"{name} is {address}: enough for one node, for several it is not")
    return _finding("own name", Status.OK, f"{name} is {address}")


def check_stacks() -> Finding:
    """Whether the stacks of a process that hangs can be read from outside, as a hang report does."""
    child = [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(child, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            answer = collect([Target(0, process.pid, Path("/nonexistent/stacks"), True)], 3.0)[0]
        finally:
            process.kill()
    if answer.stacks:
        return _finding("hang reports", Status.OK, "py-spy reads stacks, of stopped ranks too")
    why = answer.source.rpartition(", and ")[2]
    words = f"stacks of ranks that cannot answer (stopped ones) will be missing: {why}"
    mend = "pip install py-spy" if "installed" in why else "docker run --cap-add SYS_PTRACE, or sysctl ptrace_scope=1"
    return _finding("hang reports", Status.WARN, words, mend)


def check_compiler(gpu: bool) -> Finding:
    """What `training.compile` needs: a C++ compiler and Python's headers; on a GPU Triton as well."""
    missing = [] if shutil.which("g++") or shutil.which("clang++") else ["a C++ compiler (Debian: g++)"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append("Python.h (Debian: python3-dev)")
    if gpu and importlib.util.find_spec("triton") is None:
        missing.append("triton (pip install '.[gpu]'), which brings ptxas")
    if missing:
        words = f"layers cannot be compiled: {', '.join(missing)} missing"
        return _finding("compiler", Status.WARN, words, "install it, or set training.compile: false (slower)")
    return _finding("compiler", Status.OK, "g++ and Python.h" + (", triton" if gpu else ""))


def _finding(name: str, status: Status, text: str, mend: str = "") -> Finding:
    return Finding(SECTION, name, status, text, "" if status is Status.OK else mend)


def _graded(value: float, least: float, enough: float, text: str, mend: str) -> tuple[Status, str, str]:
    status = Status.FAIL if value < least else Status.WARN if value < enough else Status.OK
    return status, text, mend


def _write_and_remove(path: Path, count: int) -> tuple[float, float]:
    """(bytes a second, seconds that the file's own time is ahead), from writing up to `count` bytes, synced."""
    block = os.urandom(4 * MIB)
    written, started = 0, time.monotonic()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while written < max(count, 1) and time.monotonic() - started < DISK_SECONDS:
            written += os.write(descriptor, block)
            os.fsync(descriptor)
        seconds = time.monotonic() - started
        os.utime(descriptor)  # now, by the file system's clock
        difference = os.fstat(descriptor).st_mtime - time.time()
    finally:
        os.close(descriptor)
        path.unlink()
    return written / seconds, difference


def _quota() -> float | None:
    """Cores that the cgroup grants, in version 2 or 1; None where there is no limit."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        return None if allowed < 0 else allowed / int((folder / "cpu.cfs_period_us").read_text())
    return None


def _kept_by_ntp() -> bool | None:
    """What the kernel says (adjtimex(2) without changing anything); None where it does not."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, `modes` 0: read only
    state = ctypes.CDLL(None).adjtimex(buffer)
    return None if state < 0 else state != 5  # TIME_ERROR: not synchronized


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
