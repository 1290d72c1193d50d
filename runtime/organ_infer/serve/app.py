"""The application: its routes, and the way of a request from its body to its answer."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .. import __version__
from ..batching import Batch
from ..classifier import OrganClassifier
from ..engine.cpu_count import usable_processors
from ..errors import OrganInferError, one_line, shorten
from ..results import ImageFailure, Prediction
from .batcher import Batcher
from .bodies import BodyMemory, Reservation, files_of, read_body
from .errors import RETRY_SECONDS, RequestError
from .limits import ServiceLimits
from .metrics import CONTENT_TYPE, Metrics
from .openapi import openapi_document
from .pages import Pages
from .together import Result, classify_together, decoded_batches

__all__ = ["Rows", "Service", "create_app"]

logger = logging.getLogger("organ_infer")

PREDICT = "/v1/predict"
# Slices whose rows are written in the event loop, because that takes less time than another thread.
FEW_ROWS = 64
# Bytes of an answer that are sent at once.
PIECE = 1 << 16
# Threads that decode. Each may need the memory of one picture.
DECODERS = 8


class Rows(Protocol):
    """Writes results as lines of JSON."""

    def row(self, prediction: Prediction) -> str:
        """Return the line of a prediction."""

    def failure(self, failure: ImageFailure) -> str:
        """Return the line of a failure."""


class Service:
    """Answers requests. Decodes in threads, and leaves the classification to `classify`.

    Args:
        classifier: The model.
        rows: Writes the rows of the answer.
        limits: What is accepted.
        classify: Returns the results of a batch.

    Attributes:
        metrics: What was done.
        memory: The bodies and answers in memory.
        error: The error of the last run of the model, or None if it succeeded.
    """

    def __init__(
        self,
        classifier: OrganClassifier,
        rows: Rows,
        limits: ServiceLimits,
        classify: Callable[[Batch], Awaitable[list[Result]]] | None = None,
    ) -> None:
        self._classifier = classifier
        self._rows = rows
        self._limits = limits
        self.metrics = Metrics(__version__, classifier.manifest.name, classifier.sha256)
        self.memory = BodyMemory(limits.request_bytes * limits.held_bodies)
        self.error: str | None = None
        self._decoders = ThreadPoolExecutor(
            min(usable_processors(), DECODERS), "organ_infer decoding"
        )
        self._batcher: Batcher | None = None
        if classify is None:
            self._batcher = Batcher(
                partial(classify_together, classifier),
                slices=classifier._batch_size,
                wait=limits.batch_wait,
                on_run=self.metrics.batches.add,
            )
            classify = self._batcher.classify
        self._classify = classify

    def start(self) -> None:
        """Start the batches, in the running event loop."""
        if self._batcher is not None:
            self._batcher.start()

    async def stop(self) -> None:
        """End the threads."""
        if self._batcher is not None:
            await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> Response:
        """Answer a request to classify files."""
        started = time.monotonic()
        try:
            response = await self._predict(request)
        except RequestError as e:
            response = _error(str(e), e.status)
        except OrganInferError as e:
            logger.warning("a request failed: %s", e)
            response = _error(str(e), 500)
        except MemoryError:
            logger.warning("a request failed: not enough memory")
            response = _error("not enough memory for this request; send less at once", 503)
        except ClientDisconnect:
            # Nobody reads the answer. 499 is nginx's status for that.
            response = Response(status_code=499)
        except Exception as e:
            reason = f"{type(e).__name__} ({shorten(one_line(e), 300)})"
            logger.warning("a request failed: unexpected %s; please report this error", reason)
            response = _error("unexpected error; see the messages of the service", 500)
        self.metrics.seconds.add(time.monotonic() - started)
        return response

    async def _predict(self, request: Request) -> Response:
        self._refuse_if_full()
        if encoding := request.headers.get("content-encoding"):
            raise RequestError(
                f"Content-Encoding {shorten(encoding, 40)}: not supported; send the body as it is",
                415,
            )
        with self.memory.reserve() as reservation:
            body = await read_body(
                request.stream(),
                request.headers.get("content-length"),
                self._limits,
                reservation,
            )
            self._refuse_if_full()
            with self._waiting():
                results = await self._results(request, body)
        answer = partial(_array, self._rows, results)
        if len(results) > FEW_ROWS:
            content = await asyncio.get_running_loop().run_in_executor(self._decoders, answer)
        else:
            content = answer()
        succeeded = sum(isinstance(result, Prediction) for result in results)
        self.metrics.slices["classified"] += succeeded
        self.metrics.slices["failed"] += len(results) - succeeded
        # 422: the request is fine, but nothing in it is an image.
        return _Answer(content, 200 if succeeded else 422, self.memory.reserve())

    def _refuse_if_full(self) -> None:
        if self.metrics.waiting >= self._limits.queue:
            raise RequestError(
                f"{self._limits.queue:,} requests are waiting; send it again later", 503
            )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.metrics.waiting += 1
        try:
            yield
        finally:
            self.metrics.waiting -= 1

    async def _results(self, request: Request, body: bytes) -> list[Result]:
        """Decode and classify the files of a body, one batch at a time."""
        name = request.query_params.get("name")
        content_type = request.headers.get("content-type", "")

        def read() -> Iterator[Batch]:
            files = files_of(body, content_type, name, self._limits)
            yield from decoded_batches(self._classifier, files, self._limits)

        batches, results, count = read(), list[Result](), 0
        while batch := await self._decoded(request, batches):
            count += len(batch.names)
            if count > self._limits.slices:
                raise RequestError(
                    f"more than {self._limits.slices:,} slices; send fewer per request,"
                    " or raise --slices-per-request",
                    413,
                )
            results += await self._classified(batch)
            if batch.last:
                break
        return results

    async def _decoded(self, request: Request, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch of a request. Nothing may be awaited between this and `_classified`."""
        with nullcontext() if self._batcher is None else self._batcher.arriving():
            loop = asyncio.get_running_loop()
            batch = await loop.run_in_executor(self._decoders, next, batches, None)
            if await request.is_disconnected():
                raise ClientDisconnect
            return batch

    async def _classified(self, batch: Batch) -> list[Result]:
        try:
            results = await self._classify(batch)
        except OrganInferError as e:
            self.error = str(e)
            raise
        self.error = None
        return results

    async def health(self, request: Request) -> Response:
        """Answer whether the service works, and with which model."""
        manifest = self._classifier.manifest
        state: dict[str, Any] = {
            "status": "ok" if self.error is None else "failing",
            "version": __version__,
            "model": manifest.name,
            "sha256": self._classifier.sha256,
            "classes": self._classifier.classes,
            "providers": self._classifier.providers,
        }
        if self.error is not None:
            state["error"] = self.error
        return JSONResponse(state, 200 if self.error is None else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Answer the metrics."""
        return Response(
            self.metrics.text(self.memory.bytes), headers={"content-type": CONTENT_TYPE}
        )

    async def openapi(self, request: Request) -> Response:
        """Answer the description of this interface."""
        return JSONResponse(openapi_document(__version__, self._limits))


class _Answer(Response):
    """Rows, which count as memory until the client has taken them.

    Args:
        content: The rows.
        status: The status.
        reservation: Takes their size.

    Raises:
        RequestError: Bodies and answers in memory are too large together.
    """

    def __init__(self, content: str, status: int, reservation: Reservation) -> None:
        super().__init__(content, status, media_type="application/json")
        self._reservation = reservation
        reservation.add(len(self.body))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._reservation:
            start = {"type": "http.response.start", "status": self.status_code}
            await send(start | {"headers": self.raw_headers})
            # The server waits before each piece until the client has taken most of the others.
            for end in range(PIECE, len(self.body) + PIECE, PIECE):
                piece, more = self.body[end - PIECE : end], end < len(self.body)
                await send({"type": "http.response.body", "body": piece, "more_body": more})


def create_app(service: Service, web: str | None = None) -> Any:
    """Return the ASGI application of a service.

    Args:
        service: Answers the requests.
        web: A directory of pages at `/`, or None.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    routes: list[BaseRoute] = [
        Route(PREDICT, service.predict, methods=["POST"]),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics_text),
        Route("/openapi.json", service.openapi),
    ]
    paths = {route.path for route in routes if isinstance(route, Route)}
    if web is not None:
        routes.append(Mount("/", Pages(web)))
    app = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error}
    )
    # Scripts read "/healthz/" as a mistake, and pages have no such paths.
    app.router.redirect_slashes = False
    return _Counted(app, service.metrics, paths)


class _Counted:
    """Counts the answers of an application, and forbids browsers to guess content types."""

    def __init__(self, app: Any, metrics: Metrics, paths: set[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def send_counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests[path, message["status"]] += 1
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, send_counted)


def _array(rows: Rows, results: list[Result]) -> str:
    """Return the results as one JSON array, each on its own line, as organ-infer --format json does."""
    lines = (
        rows.failure(result) if isinstance(result, ImageFailure) else rows.row(result)
        for result in results
    )
    return f"[\n{','.join(lines)}]\n"


def _error(text: str, status: int) -> JSONResponse:
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"error": text}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    texts = {
        404: f"not found; POST images to {PREDICT}, or see /openapi.json",
        405: f"this path does not take {request.method}; see /openapi.json",
    }
    text = texts.get(error.status_code, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)
