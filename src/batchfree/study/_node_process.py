"""The function that an engine sends to a node: it runs a cell's process there, and passes on what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["NodeProcess", "node_process"]

#: (words, log, environment, folder to run in, signals that ask for a stop) -> exit code, or why it was stopped.
NodeProcess = Callable[[Sequence[str], str, Mapping[str, str], str, Sequence[int]], "int | str"]


def node_process(parent_variable: str, kills: bool) -> NodeProcess:
    """The function; it is nested, so that it travels by value and no node imports torch to wait for a process.

    Asked to stop, it sends the process SIGTERM and waits until it has written its checkpoint.

    Args:
        parent_variable: where the process finds whose child it is.
        kills: whether being asked again means SIGKILL.
    """

    def run(
        words: Sequence[str], log: str, environment: Mapping[str, str], folder: str, signals: Sequence[int]
    ) -> int | str:
        import os
        import shlex
        import signal
        import subprocess
        import time

        asked: list[int] = []
        before = {number: signal.signal(number, lambda given, _: asked.append(given)) for number in signals}
        try:
            with open(log, "ab") as output:
                output.write(f"$ {shlex.join(words)}\n".encode())
                output.flush()
                process = subprocess.Popen(
                    words,
                    cwd=folder if os.path.isdir(folder) else None,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment, parent_variable: str(os.getpid())},
                    start_new_session=True,
                )
            told = 0
            while process.poll() is None:
                if len(asked) > told:
                    if kills and len(asked) > 1:
                        os.killpg(process.pid, signal.SIGKILL)
                    elif not told:
                        process.terminate()
                    told = len(asked)
                time.sleep(0.1)
            if asked and process.returncode:
                return f"stopped by {signal.Signals(asked[0]).name}; its last checkpoint is kept"
            return process.returncode
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return run
