"""The web service as a replica of Ray Serve (`organ_infer.ray.deployment`)."""

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..batching import Batch
from ..classifier import OrganClassifier
from ..errors import DeviceError
from .app import Rows, Service, create_app
from .limits import ServiceLimits
from .together import Result, classify_together

__all__ = ["replica_class"]

# Requests per call of the batch. Their slices are classified in as many runs as they need.
REQUESTS_TOGETHER = 64


def replica_class(serve: ModuleType, batch_wait: float) -> type:
    """Return the class of the replicas.

    Args:
        serve: The module ray.serve.
        batch_wait: Seconds that a request waits for others, at most.
    """

    class Replica:
        def __init__(
            self,
            bundle: str | None,
            limits: ServiceLimits,
            rows: Callable[[OrganClassifier], Rows],
            options: dict[str, Any],
        ) -> None:
            self._classifier = OrganClassifier(bundle, **options)
            service = Service(self._classifier, rows(self._classifier), limits, self.classify)
            self._service = service
            self._app = create_app(service)

        @serve.batch(max_batch_size=REQUESTS_TOGETHER, batch_wait_timeout_s=batch_wait)  # type: ignore[untyped-decorator]
        async def classify(self, batches: list[Batch]) -> list[list[Result]]:
            results = await asyncio.to_thread(classify_together, self._classifier, batches)
            self._service.metrics.batches.add(sum(len(batch.packed) for batch in batches))
            return results

        async def __call__(self, request: Request) -> Response:
            return await _response(self._app, request)

        async def check_health(self) -> None:
            """Let Ray replace a replica whose model fails."""
            if self._service.error is not None:
                raise DeviceError(self._service.error)

    return Replica


async def _response(app: Any, request: Request) -> Response:
    """Return what an ASGI application answers, as one Response."""
    started: dict[str, Any] = {}
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(request.scope, request.receive, send)
    response = Response(b"".join(parts), started["status"])
    response.raw_headers = started["headers"]
    return response
