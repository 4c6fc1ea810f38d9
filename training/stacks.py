"""What a rank can say of itself while it hangs: the stacks of its threads, and the collective that it waits in.

Two ways lead in, since the main thread may be deep in C++ and answer nothing: SIGUSR1, whose handler (faulthandler's)
needs no interpreter lock, and a FIFO with a thread of its own behind it (torch's collectives release the lock while
they wait). The collective comes from torch's flight recorder, which keeps the last 2,000 of gloo and of NCCL and is on
by default (torch 2.13; TORCH_FR_BUFFER_SIZE=0 turns it off). Point-to-point calls on gloo are not in it: these are told
from the main thread's stack. Only the standard library is imported here, so that a rank can listen before it imports
torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import linecache
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

VARIABLE = "TRESTLE_STACKS"
COMMUNICATION = ("/torch/distributed/", "/deepspeed/comm/", "/pipeline_parallel/p2p_communication.py")
"""Files whose functions are on top of the stack while a rank waits for others."""
MEETING = "_meeting_point"
"""The function of `training.process` in which a rank waits for the others to come."""
PLUMBING = ("/typing_extensions.py", "/contextlib.py", "/torch/utils/_contextlib.py")

PR_SET_PTRACER = 0x59616D61  # linux/prctl.h

_listening: dict[str, TextIO] = {}  # path → the file that faulthandler writes to, which must stay open


def listen(environment: Mapping[str, str]) -> None:
    """From now on answer SIGUSR1 and the FIFO that belong to the file `environment` names; none, no answers.

    SIGUSR1 appends the stacks of all threads to TRESTLE_STACKS; anything written to the FIFO TRESTLE_STACKS.ask
    replaces TRESTLE_STACKS.json by what `last_collective` returns. Never raises: a rank trains without it, too.
    """
    path = environment.get(VARIABLE)
    if not path or path in _listening:
        return
    # Where Yama restricts tracing, whoever started this rank may still read it from outside; without Yama it fails.
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, os.getppid(), 0, 0, 0)
    try:
        file = Path(path).open("a")  # noqa: SIM115 open as long as the rank lives
        faulthandler.register(signal.SIGUSR1, file, all_threads=True, chain=False)
        _listening[path] = file
        with suppress(FileExistsError):
            os.mkfifo(f"{path}.ask", 0o600)
        questions = os.open(f"{path}.ask", os.O_RDWR | os.O_CLOEXEC)  # for writing, too: so that it never ends
        answer = Path(f"{path}.json")
        threading.Thread(target=_answer, args=(questions, answer), name="hang-report", daemon=True).start()
    except (OSError, ValueError, RuntimeError) as error:
        logging.getLogger(__name__).warning("hang reports will lack this rank's stacks: %s", error)


def last_collective() -> dict[str, Any]:
    """What this rank waits for, as `cluster.supervisor.run` describes it: JSON."""
    main = sys._current_frames().get(threading.main_thread().ident or 0)
    place, called = _place(main)
    told: dict[str, Any] = {"waiting": called is not None, "operation": called, "function": place}
    with suppress(Exception):  # torch half imported, or another version of the recorder
        told |= _from_recorder(_recorded(), in_communication=told["waiting"] or _waits_on_a_handle(main))
        told["members"] = _members().get(told.get("group", ""))
    return told


def _answer(questions: int, path: Path) -> None:
    while os.read(questions, 1):
        draft = path.with_name(f"{path.name}.draft")
        with suppress(OSError):
            draft.write_text(json.dumps(last_collective()))
            draft.replace(path)


def _place(frame: FrameType | None) -> tuple[str | None, str | None]:
    """Where a thread is, `function (file:line)`, and the call in COMMUNICATION that it is in, if it is in one."""
    called = None
    while frame is not None:
        code = frame.f_code
        if code.co_name == MEETING or any(part in code.co_filename for part in COMMUNICATION):
            if code.co_name != "wrapper":
                called = code.co_name.lstrip("_")
        elif not code.co_filename.endswith(PLUMBING):
            return f"{code.co_name} ({_short(code.co_filename)}:{frame.f_lineno})", called
        frame = frame.f_back
    return None, called


def _waits_on_a_handle(frame: FrameType | None) -> bool:
    """True when the main thread's line is `handle.wait()`: a collective that was started earlier."""
    return frame is not None and ".wait(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def _short(filename: str) -> str:
    return "/".join(filename.split("/")[-2:])


def _recorded() -> list[dict[str, Any]]:
    """The flight recorders' dumps: of gloo, and of NCCL where torch was built with it (about 50 ms when full)."""
    c10d: Any = sys.modules["torch._C._distributed_c10d"]
    dumps = [getattr(c10d, name, None) for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json")]
    return [json.loads(dump()) for dump in dumps if dump is not None]


def _from_recorder(dumps: list[dict[str, Any]], *, in_communication: bool) -> dict[str, Any]:
    """The oldest collective that has not completed, if the rank waits for it, else the newest; and how far each group
    is. `in_communication`: the main thread is in such a call. A GPU's collectives are waited for by any call that waits
    for the GPU, so there an incomplete one is enough; one of gloo may also be left running in the background.
    """
    entered: dict[str, int] = {}
    incomplete, newest = None, None
    for dump in dumps:
        for entry in dump.get("entries", []):
            if not entry["is_p2p"]:
                entered[_group(entry)] = max(entry["collective_seq_id"], entered.get(_group(entry), 0))
            background = str(entry["profiling_name"]).startswith("gloo:") and not in_communication
            if not entry["retired"] and entry["state"] != "completed" and not background:
                incomplete = _older(entry, incomplete)
            if newest is None or entry["time_created_ns"] >= newest["time_created_ns"]:
                newest = entry
    told: dict[str, Any] = {"entered": entered}
    if incomplete is not None:
        told |= {"waiting": True, **_described(incomplete)}
        told["since_seconds"] = round((time.time_ns() - incomplete["time_created_ns"]) / 1e9, 1)
    elif not in_communication and newest is not None:
        told |= {"last": _described(newest)}
    return told


def _older(one: dict[str, Any], other: dict[str, Any] | None) -> dict[str, Any]:
    return one if other is None or one["time_created_ns"] < other["time_created_ns"] else other


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation": str(entry["profiling_name"]).partition(":")[2] or entry["profiling_name"],
        "group": _group(entry),
        "sequence": entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"],
    }


def _group(entry: dict[str, Any]) -> str:
    """Number and description: torch numbers its groups alike on all ranks."""
    return _group_name(*entry["process_group"])


def _group_name(number: str, description: str) -> str:
    return f"{description} (group {number})"


def _members() -> dict[str, list[int]]:
    """The global ranks of each group that this rank belongs to."""
    world: Any = sys.modules["torch.distributed.distributed_c10d"]._world
    return {
        _group_name(group.group_name, group.group_desc): sorted(ranks) for group, ranks in world.pg_group_ranks.items()
    }
