"""Serves the directory of the web page as page.json says: its files, their types and its headers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class PageServer:
    """A server on a free port of this machine.

    Attributes:
        origin: Its address, without a slash at the end.
        missed: Paths that were requested and are not in page.json.
        sent: Bytes sent, without headers.
    """

    def __init__(self, directory: Path) -> None:
        self.missed: list[str] = []
        self.sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(directory))
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self, directory: Path) -> type[BaseHTTPRequestHandler]:
        page = json.loads((directory / "page.json").read_text())
        types = {name: listed["type"] for name, listed in page["files"].items()}
        types["page.json"] = "application/json"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/") or "index.html"
                path = directory / name
                if name not in types or not path.is_file():
                    outer.missed.append(self.path)
                    self.send_error(404)
                    return
                data = path.read_bytes()
                outer.sent += len(data)
                self.send_response(200)
                for header, value in page["headers"].items():
                    self.send_header(header, value)
                self.send_header("Content-Type", types[name])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
