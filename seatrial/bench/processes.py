"""Workers as local processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from seatrial.bench.plan import Plan
from seatrial.bench.worker import Agenda, OpenSubjects, Worker
from seatrial.errors import SeatrialError


def run_in_processes(
    open_subjects: OpenSubjects, plan: Plan, folder: Path, agenda: Agenda, *, jobs: int, retry_failed: bool
) -> None:
    """Deal the agenda to `jobs` fresh (spawned) processes.

    Raises what a worker raised, and SeatrialError where one died. Whatever happens, no process is left behind: they
    may be ended at any moment, because cells are never half written.
    """
    context = multiprocessing.get_context("spawn")
    crew: dict[Any, BaseProcess] = {}  # by our end of the pipe, whose type depends on the platform
    tasks: dict[Any, int] = {}
    try:
        for _ in range(min(jobs, len(agenda))):
            mine, theirs = multiprocessing.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, open_subjects, plan, folder, retry_failed), daemon=False
            )
            process.start()
            theirs.close()  # so that a dead worker reads as the end of the pipe
            crew[mine] = process
            _give(mine, agenda, tasks)
        while tasks:
            for pipe in wait(list(tasks)):
                index = tasks.pop(pipe)
                agenda.settle(index, _answer(pipe, crew[pipe]))
                for idle in crew.keys() - tasks.keys():
                    _give(idle, agenda, tasks)
        for pipe in crew:
            with contextlib.suppress(ConnectionError):  # it died after its last answer, and nothing is missing
                pipe.send(None)
        for process in crew.values():
            process.join()
    finally:
        for pipe, process in crew.items():
            pipe.close()
            if process.is_alive():
                process.terminate()
            process.join()


def _give(pipe: Any, agenda: Agenda, tasks: dict[Any, int]) -> None:
    if len(agenda):
        index, patient = agenda.take()
        tasks[pipe] = index
        with contextlib.suppress(ConnectionError):  # of a dead worker; reading its answer will tell
            pipe.send((index, patient))


def _answer(pipe: Any, process: BaseProcess) -> bool:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError) as error:
        process.join()
        raise SeatrialError(
            f"a worker process ended with code {process.exitcode} (memory, or a crash in a runtime); finished cells"
            " stay; run the same command again, with fewer --jobs"
        ) from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _serve(pipe: Connection, open_subjects: OpenSubjects, plan: Plan, folder: Path, retry_failed: bool) -> None:
    # Ctrl-C reaches the whole process group; the parent decides and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = None
    try:
        worker = Worker(open_subjects, plan, folder, retry_failed)
        while (task := pipe.recv()) is not None:
            pipe.send(worker.run(*task))
    except (EOFError, ConnectionError):
        return  # the parent is gone, and what was finished is in the store
    except Exception as error:  # told to the parent, which raises it
        pipe.send(_portable(error))
    finally:
        if worker is not None:
            worker.close()


def _portable(error: Exception) -> Exception:
    """Return the error, or one that can travel and says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
