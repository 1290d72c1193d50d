"""Counts of a service in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

__all__ = ["CONTENT_TYPE", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How many values are at most each of the bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """Return the lines of the metric."""
        lines, total = [], 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.9g}", f"{name}_count {total}"]


class Metrics:
    """What a service has done.

    Attributes:
        requests: Answers, by path and status.
        refused: Connections that were ended before their request was complete, by reason.
        slices: Slices, by `classified` or `failed`.
        seconds: Time from the head of a request to /v1/predict to its answer.
        batches: Slices per run of the network.
        waiting: Requests that are decoded or classified, or wait for that.
    """

    def __init__(self, version: str, model: str, sha256: str) -> None:
        self._labels = (("version", version), ("model", model), ("sha256", sha256))
        self.requests: Counter[tuple[str, int]] = Counter()
        self.refused: Counter[str] = Counter()
        self.slices: Counter[str] = Counter(classified=0, failed=0)
        self.seconds = Histogram(SECONDS)
        self.batches = Histogram(SLICES)
        self.waiting = 0

    def text(self, body_bytes: int) -> str:
        """Return all metrics.

        Args:
            body_bytes: Bytes of the bodies and answers in memory.
        """
        info = ",".join(f'{name}="{_escaped(value)}"' for name, value in self._labels)
        requests = [
            f'organ_infer_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        refused = [
            f'organ_infer_connections_refused_total{{reason="{reason}"}} {count}'
            for reason, count in sorted(self.refused.items())
        ]
        slices = [
            f'organ_infer_slices_total{{result="{result}"}} {count}'
            for result, count in sorted(self.slices.items())
        ]
        metrics = (
            ("info", "gauge", "The version and the model.", [f"organ_infer_info{{{info}}} 1"]),
            ("requests_total", "counter", "Answers, by path and status.", requests),
            (
                "connections_refused_total",
                "counter",
                "Connections ended before their request was complete.",
                refused,
            ),
            ("slices_total", "counter", "Slices, by result.", slices),
            (
                "request_seconds",
                "histogram",
                "Time to answer /v1/predict.",
                self.seconds.lines("organ_infer_request_seconds"),
            ),
            (
                "batch_slices",
                "histogram",
                "Slices per run of the network.",
                self.batches.lines("organ_infer_batch_slices"),
            ),
            (
                "requests_waiting",
                "gauge",
                "Requests that are decoded or classified, or wait for that.",
                [f"organ_infer_requests_waiting {self.waiting}"],
            ),
            (
                "body_bytes",
                "gauge",
                "Bytes of the bodies and answers in memory.",
                [f"organ_infer_body_bytes {body_bytes}"],
            ),
        )
        lines = []
        for name, kind, text, samples in metrics:
            lines += [
                f"# HELP organ_infer_{name} {text}",
                f"# TYPE organ_infer_{name} {kind}",
                *samples,
            ]
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
