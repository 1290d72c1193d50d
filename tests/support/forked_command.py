"""organ-infer in child processes that do not import it anew: each is forked from a server that has imported everything.

A child is a process as any other: it has its own standard streams, runs `organ_infer` as `python -m` does, and ends as the
interpreter ends. Run as a program, this file is the server.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A thread does not survive a fork, so that the server may have none besides its own. OpenBLAS starts some.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
# The server's answers: its threads once, then per request the child's id and its wait status.
REPLY = struct.Struct("i")


class ForkedCommand:
    """Runs organ-infer in forks of a server that has one environment.

    Attributes:
        environment: The variables of the server and its children.
        usable: Whether the server can fork: it has one thread.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # pipes, as of the children: the streams are buffered alike
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment | ONE_THREAD,
            )
        self.usable = self._reply() == 1

    def run(
        self, arguments: Sequence[str], *, cwd: str, stdin: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """The finished process, as of `subprocess.run` with both outputs captured."""
        read_out, write_out = os.pipe()
        read_err, write_err = os.pipe()
        read_in, write_in = os.pipe()
        with tempfile.TemporaryFile("w+") as request, ThreadPoolExecutor(3) as pool:
            json.dump({"arguments": list(arguments), "cwd": cwd}, request)
            request.flush()
            theirs = [read_in, write_out, write_err, request.fileno()]
            socket.send_fds(self._socket, [b"x"], theirs)
            for number in theirs[:3]:
                os.close(number)
            pool.submit(_write, write_in, stdin or b"")
            outputs = [pool.submit(_read, number) for number in (read_out, read_err)]
            child = self._reply()
            in_time, _, _ = select.select([self._socket], [], [], timeout)
            if not in_time:
                # it may have ended by now
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            status = self._reply()
            out, err = (output.result() for output in outputs)
        if not in_time:
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out, err)

    def _reply(self) -> int:
        """The next number. Nothing after it is read, so that `select` sees what has arrived."""
        return REPLY.unpack(self._socket.recv(REPLY.size, socket.MSG_WAITALL))[0]

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._server.communicate()


def _write(number: int, content: bytes) -> None:
    with open(number, "wb") as file:
        file.write(content)


def _read(number: int) -> bytes:
    with open(number, "rb") as file:
        return file.read()


def _import_all() -> None:
    """What a command imports on its way."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401

    import organ_infer.cli

    for module in pkgutil.iter_modules(organ_infer.cli.__path__):
        importlib.import_module(f"organ_infer.cli.{module.name}")


def _next_request(connection: socket.socket) -> dict | None:
    """Answer requests, each in a fork: returns the request in the child, and None in the server at the end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        if not message:
            return None
        child = os.fork()
        if child == 0:
            connection.close()
            for stream, number in enumerate(descriptors[:3]):
                os.dup2(number, stream)
                os.close(number)
            with open(descriptors[3]) as file:
                file.seek(0)
                return json.load(file)
        for number in descriptors:
            os.close(number)
        connection.sendall(REPLY.pack(child))
        _, status = os.waitpid(child, 0)
        connection.sendall(REPLY.pack(status))


def _serve(number: int) -> None:
    _import_all()
    for name in ONE_THREAD:
        del os.environ[name]
    gc.collect()
    gc.freeze()
    connection = socket.socket(fileno=number)
    connection.sendall(REPLY.pack(len(os.listdir("/proc/self/task"))))
    request = _next_request(connection)
    if request is not None:
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]
        sys.argv[1:] = request["arguments"]
        runpy.run_module("organ_infer", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # not this file's directory
    sys.path[0] = str(Path.cwd())
    _serve(int(sys.argv[1]))
