"""The web service in a process of its own or in this one, and clients for it: good ones, and raw bytes."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from conftest import child_environment


class Answer(NamedTuple):
    status: int
    headers: dict
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)

    @property
    def error(self):
        assert set(self.json) == {"error"} and "\n" not in self.json["error"]
        return self.json["error"]


class RunningService:
    """A process of organ-infer serve."""

    def __init__(self, process, log):
        self.process = process
        self._log = log
        self.port = int(process.stdout.readline().rpartition(":")[2] or 0)
        assert self.port, self.messages()

    def ask(self, method, path, body=None, headers=None):
        """Send a request over a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            return read_answer(connection.getresponse())

    def predict(self, body, headers=None, query=""):
        return self.ask("POST", f"/v1/predict{query}", body, headers)

    def connect(self, receive_buffer=None):
        """A connection for raw bytes."""
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def metric(self, name):
        """The value of a sample, such as `organ_infer_body_bytes`; 0 if there is none."""
        text = self.ask("GET", "/metrics").content.decode()
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def wait_for(self, name, value):
        """Wait until a metric has a value."""
        until = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < until, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.05)

    def memory(self):
        """Bytes of the process in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10

    def messages(self):
        return Path(self._log).read_text()

    def stop(self, number=signal.SIGTERM):
        """Send a signal, and return the exit code and the messages."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        return code, self.messages()


@contextlib.contextmanager
def running_service(log, *arguments, **environment):
    """Start organ-infer serve on a free port; `log`: the file of its messages."""
    command = [sys.executable, "-m", "organ_infer", "serve", "--port", "0", *map(str, arguments)]
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(**environment),
        ) as process,
    ):
        try:
            yield RunningService(process, log)
        finally:
            process.kill()


def read_answer(response):
    content = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, content)


def receive(connection):
    """The next answer on a connection."""
    response = HTTPResponse(connection)
    response.begin()
    return read_answer(response)


def form(*files, boundary=b"b0undary"):
    """The body of a form, and its headers. `files`: (name, content)."""
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (boundary, name.encode(), content)
        for name, content in files
    )
    return body + b"--%s--\r\n" % boundary, {
        "Content-Type": f"multipart/form-data; boundary={boundary.decode()}"
    }


async def ask_app(app, method, path, body=b"", headers=None, query=b""):
    """Send a request to an ASGI application in this process."""
    sent = []
    chunks = [body]

    async def receive():
        if chunks:
            return {"type": "http.request", "body": chunks.pop(), "more_body": False}
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }
    await app(scope, receive, send)
    start, *parts = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(part.get("body", b"") for part in parts))
