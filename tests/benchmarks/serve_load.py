"""Load test of organ-infer serve on this machine: requests per second and latencies, and whether any request is lost.

    python tests/benchmarks/serve_load.py            # the tables of docs/deploy/service.md
    python tests/benchmarks/serve_load.py --quick    # a tenth of the requests

The service runs in a process of its own, the clients in this one. Each client is one connection that sends its next
request when it has the answer. Prints Markdown. Exits with 1 if an answer is missing or wrong.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLIENTS = (1, 4, 16, 64)
# Of the mixed load: how many clients there are, and which share of the requests is malformed.
MIXED_CLIENTS = 32
MALFORMED = 0.2


class Picture(NamedTuple):
    """An example image with its label."""

    label: str
    content: bytes


class Request(NamedTuple):
    """Bytes to send, and what must come back.

    Attributes:
        data: The whole request, or its beginning.
        status: The expected status, or None for a client that is killed before its answer.
        label: The expected label, or None.
        keeps: Whether the connection can be used again.
    """

    data: bytes
    status: int | None
    label: str | None = None
    keeps: bool = True


def pictures() -> list[Picture]:
    """Every example."""
    return [
        Picture(path.stem.rpartition("-")[0], path.read_bytes())
        for path in sorted(EXAMPLES.glob("*.png"))
    ]


def posted(body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A request to /v1/predict."""
    length = len(body) if length is None else length
    lines = ["POST /v1/predict HTTP/1.1", "Host: here", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def form(files: list[Picture], end: bytes = b"--\r\n") -> bytes:
    """A request with a form."""
    body = b"".join(
        b'--bound\r\nContent-Disposition: form-data; name="f"; filename="%d.png"\r\n\r\n%s\r\n'
        % (i, file.content)
        for i, file in enumerate(files)
    )
    kind = "Content-Type: multipart/form-data; boundary=bound"
    return posted(body + b"--bound" + end, kind)


def malformed(picture: Picture) -> list[Request]:
    """Requests that clients get wrong, each with its answer."""
    content = picture.content
    return [
        Request(posted(b"not an image"), 422),
        Request(posted(content[: len(content) // 2]), 422),
        Request(posted(b""), 400),
        Request(form([picture], end=b""), 400),
        Request(posted(b"x", "Content-Type: multipart/form-data"), 400),
        Request(posted(b"x", "Content-Encoding: gzip"), 415),
        Request(b"GET /v1/predict HTTP/1.1\r\nHost: here\r\n\r\n", 405),
        Request(b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n", 404),
        Request(posted(b"", length=5 << 30), 413, keeps=False),
        Request(b"garbage\r\n\r\n", 400, keeps=False),
        Request(posted(content, length=len(content) + 9), None, keeps=False),
        Request(posted(content), None, keeps=False),
    ]


class Client:
    """One connection, opened again when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: Request) -> tuple[int | None, bytes]:
        """Send a request, and return its status and the content of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request.data)
        await writer.drain()
        status, content = None, b""
        if request.status is not None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split()[1])
            content = await reader.readexactly(
                int(head.partition("content-length: ")[2].split()[0])
            )
        if not request.keeps:
            await self.close()
        return status, content

    async def close(self) -> None:
        """Close the connection, also in the middle of a request."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class Load(NamedTuple):
    """What a run measured.

    Attributes:
        seconds: Of the whole run.
        latencies: Seconds of each request that was answered.
        outcomes: How often each `expected -> found` happened, such as `200 -> 200`.
    """

    seconds: float
    latencies: list[float]
    outcomes: Counter[str]

    def percentile(self, share: float) -> float:
        """Milliseconds that a share of the requests needed at most."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    @property
    def wrong(self) -> int:
        """How many requests were lost or got another answer than expected."""
        return sum(count for text, count in self.outcomes.items() if len({*text.split(" -> ")}) > 1)


async def load(port: int, requests: Iterator[Request], clients: int) -> Load:
    """Send requests, each over the first of the connections that is free."""
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()

    async def work() -> None:
        client = Client(port)
        for request in requests:
            started = time.perf_counter()
            expected = "closed" if request.status is None else str(request.status)
            try:
                status, content = await asyncio.wait_for(client.send(request), 120)
            except (OSError, EOFError, ValueError, TimeoutError) as e:
                outcomes[f"{expected} -> lost ({type(e).__name__})"] += 1
                await client.close()
                continue
            found = "closed" if status is None else str(status)
            if request.label is not None and status == 200:
                labels = {row.get("label") for row in json.loads(content)}
                if labels != {request.label}:
                    found = "another label"
            outcomes[f"{expected} -> {found}"] += 1
            if status is not None:
                latencies.append(time.perf_counter() - started)
        await client.close()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return Load(time.perf_counter() - started, latencies, outcomes)


@contextlib.asynccontextmanager
async def service(*arguments: str) -> AsyncIterator[int]:
    """Start a service on a free port, warm it up, and end it with SIGTERM."""
    command = [sys.executable, "-m", "organ_infer", "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        try:
            good = [Request(posted(each.content), 200) for each in pictures()]
            await load(port, iter(good), 4)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 143:
                raise SystemExit(f"the service ended with {process.returncode}, not 143")


async def measure(
    count: int, arguments: tuple[str, ...], make: Callable[[], Iterator[Request]]
) -> list[Load]:
    """Measure each number of clients, with a fresh service."""
    loads = []
    async with service(*arguments) as port:
        for clients in CLIENTS:
            loads.append(await load(port, itertools.islice(make(), count), clients))
    return loads


def one_image() -> Iterator[Request]:
    """Requests of one image each, without end."""
    given = [Request(posted(each.content), 200, each.label) for each in pictures()]
    yield from itertools.cycle(given)


def sixteen_images() -> Iterator[Request]:
    """Forms of 16 images, without end."""
    data = form(pictures()[:16])
    while True:
        yield Request(data, 200)


def mixed() -> Iterator[Request]:
    """Good and malformed requests in random order, without end."""
    chance = random.Random(0)
    given = pictures()
    good = [Request(posted(each.content), 200, each.label) for each in given]
    bad = [request for each in given for request in malformed(each)]
    while True:
        yield chance.choice(bad if chance.random() < MALFORMED else good)


async def main(quick: bool) -> int:
    """Print the tables. Returns the exit code."""
    count = 300 if quick else 3000
    rows = (
        ("one image", count, (), 1, one_image),
        ("one image, `--max-batch 1`", count, ("--max-batch", "1"), 1, one_image),
        ("form of 16 images", count // 10, (), 16, sixteen_images),
    )
    wrong = 0
    print(
        "| request | clients | requests/s | slices/s | p50 ms | p99 ms |\n|---|---|---|---|---|---|"
    )
    for name, number, arguments, slices, make in rows:
        for clients, each in zip(CLIENTS, await measure(number, arguments, make), strict=True):
            rate = number / each.seconds
            print(
                f"| {name} | {clients} | {rate:,.0f} | {rate * slices:,.0f}"
                f" | {each.percentile(0.5):.1f} | {each.percentile(0.99):.1f} |",
                flush=True,
            )
            wrong += each.wrong
    total = 1000 if quick else 10_000
    async with service() as port:
        result = await load(port, itertools.islice(mixed(), total), MIXED_CLIENTS)
    wrong += result.wrong + total - result.outcomes.total()
    print("\n| expected -> found | requests |\n|---|---|")
    for text, number in sorted(result.outcomes.items()):
        print(f"| {text} | {number:,} |")
    print(
        f"\n{total:,} requests of {MIXED_CLIENTS} clients in {result.seconds:.1f} s,"
        f" p99 {result.percentile(0.99):.1f} ms, {wrong} wrong or lost"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    sys.exit(asyncio.run(main(parser.parse_args().quick)))
