"""The web service: answers, limits, what clients do wrong, signals, and pages. Each kind leaves the service working."""

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, child_environment, needs_default
from support.service import ask_app, form, receive, running_service
from test_imports import loaded

from organ_infer import DeviceError
from organ_infer.cli import main
from organ_infer.cli.formats import JsonlFormat, RowOptions
from organ_infer.serve.limits import ServiceLimits

pytest.importorskip("starlette", reason="starlette is not installed: pip install -e '.[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[serve]'")

from organ_infer.serve.app import Service, create_app
from organ_infer.serve.openapi import openapi_document
from organ_infer.serve.together import classify_together

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
OK = b"POST /v1/predict HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture(scope="module")
def service(bundle, tmp_path_factory):
    """A service with short timeouts. Every test ends with the check that it works."""
    log = tmp_path_factory.mktemp("service") / "log"
    arguments = (
        "--bundle",
        bundle,
        "--device",
        "cpu",
        "--threads",
        1,
        "--request-limit",
        1_000_000,
    )
    arguments += ("--header-timeout", 1, "--body-timeout", 1.5, "--connections", 30)
    with running_service(log, *arguments) as running:
        yield running


@pytest.fixture(autouse=True)
def still_works(request, pictures):
    """After each test that uses `service`: it answers, holds no body, has no request in progress and no traceback."""
    yield
    if "service" not in request.fixturenames:
        return
    service = request.getfixturevalue("service")
    service.wait_for("organ_infer_body_bytes", 0)
    service.wait_for("organ_infer_requests_waiting", 0)
    answer = service.predict((pictures / "s00.png").read_bytes())
    assert answer.status == 200 and answer.json[0]["path"] == "upload"
    assert "Traceback" not in service.messages() and "unexpected" not in service.messages()


@pytest.fixture(scope="module")
def picture(pictures):
    return (pictures / "s00.png").read_bytes()


def array_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Answers.


def test_the_rows_are_those_of_the_command(service, bundle, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "bad.png", "stack.npy", "café.png"]
    (tmp_path / "a.png").write_bytes((pictures / "s01.png").read_bytes())
    (tmp_path / "café.png").write_bytes((pictures / "s02.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((pictures / "s03.png").read_bytes()[:60])
    np.save("stack.npy", np.zeros((3, 28, 28), np.uint8))
    options = ("--bundle", str(bundle), "--quiet", "--output", "rows.json")
    assert main([*options, *names]) == 1
    answer = service.predict(*form(*((name, (tmp_path / name).read_bytes()) for name in names)))
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    expected = json.loads((tmp_path / "rows.json").read_text())
    assert [row["path"] for row in answer.json] == [row["path"] for row in expected]
    for found, row in zip(answer.json, expected, strict=True):
        assert found.keys() == row.keys()
        for key, value in row.items():
            # a batch can differ in the last digit from a slice
            close = key == "probabilities" or "probability" in key
            assert found[key] == (pytest.approx(value, abs=1e-6) if close else value)


@pytest.mark.parametrize(
    "kind", ["image/png", "text/plain", "application/x-www-form-urlencoded", ""]
)
def test_one_image_is_a_body_of_any_content_type(service, picture, kind):
    answer = service.predict(picture, {"Content-Type": kind}, "?name=a%20b.png")
    assert answer.status == 200 and [row["path"] for row in answer.json] == ["a b.png"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_arrays_are_a_body_with_a_result_per_slice(service, slices):
    archive = io.BytesIO()
    np.savez_compressed(archive, x=slices[:2])
    rows = service.predict(array_file(slices[:5])).json
    assert [row["path"] for row in rows] == [f"upload#{i}" for i in range(5)]
    assert [row["path"] for row in service.predict(archive.getvalue()).json] == [
        "upload#x#0",
        "upload#x#1",
    ]


def test_one_failed_file_does_not_fail_the_others(service, picture):
    answer = service.predict(*form(("a", picture), ("b", b"no image"), ("c", picture), ("d", b"")))
    assert answer.status == 200
    assert [("error" in row, row["path"]) for row in answer.json] == [
        (False, "a"), (True, "b"), (False, "c"), (True, "d")
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"no image", b"{}", b"\0", b"\x89PNG\r\n\x1a\n"])
def test_nothing_but_failures_is_422_with_rows(service, content):
    answer = service.predict(content)
    assert answer.status == 422 and set(answer.json[0]) == {"path", "error"}


def test_the_health_names_the_model(service, classifier):
    answer = service.ask("GET", "/healthz")
    assert answer.status == 200 and answer.json["sha256"] == classifier.sha256
    assert answer.json["status"] == "ok" and answer.json["classes"] == list(classifier.classes)
    assert service.ask("HEAD", "/healthz").status == 200


@pytest.mark.parametrize(
    "method, path, status, text",
    [
        ("GET", "/", 404, "not found; POST images to /v1/predict"),
        ("GET", "/healthz/", 404, "not found"),
        ("GET", "/v1/predict", 405, "this path does not take GET"),
        ("PUT", "/healthz", 405, "this path does not take PUT"),
        ("GET", "/" + "a" * 5000, 404, "not found"),
        ("GET", "/%00", 404, "not found"),
    ],
)
def test_other_paths_and_methods(service, method, path, status, text):
    answer = service.ask(method, path)
    assert answer.status == status and answer.error.startswith(text)


@pytest.mark.parametrize(
    "body, headers, status, text",
    [
        (b"", {}, 400, "the body is empty"),
        (b"x", {"Content-Encoding": "gzip"}, 415, "Content-Encoding gzip: not supported"),
        (b"x", {"Content-Type": "multipart/mixed; boundary=b"}, 415, "only multipart/form-data"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "the form has no boundary"),
        (b"x" * 1_000_001, {}, 413, "the body has more than 1,000,000 bytes"),
    ],
)
def test_bodies_that_are_refused(service, body, headers, status, text):
    answer = service.predict(body, headers)
    assert answer.status == status and answer.error.startswith(text)


# Metrics and the description.

SAMPLE = re.compile(r'[a-z_]+(\{([a-z0-9_]+="[^"\\]*",?)+\})? [0-9.e+-]+')


def test_the_metrics_are_prometheus_text_and_count(service, picture):
    def count():
        text = service.ask("GET", "/metrics").content.decode()
        name = re.escape('organ_infer_requests_total{path="/v1/predict",status="200"}')
        return int(re.search(rf"^{name} (\d+)$", text, re.MULTILINE)[1])

    service.predict(picture)
    before, slices = count(), service.metric('organ_infer_slices_total{result="failed"}')
    service.predict(*form(("a", picture), ("b", b"bad")))
    assert count() == before + 1
    assert service.metric('organ_infer_slices_total{result="failed"}') == slices + 1
    service.ask("GET", "/no-such-path")
    answer = service.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.content.decode().splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples)
    declared = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {
        re.sub(r"_(bucket|sum|count)?(\{.*)? .*|\{.*| .*", "", line) for line in samples
    } <= declared
    # a path that clients choose is no label
    assert "no-such-path" not in answer.content.decode()


def test_buckets_of_a_histogram_add_up(service, picture):
    service.predict(picture)
    text = service.ask("GET", "/metrics").content.decode()
    for name in ("organ_infer_request_seconds", "organ_infer_batch_slices"):
        counts = [int(n) for n in re.findall(rf"^{name}_bucket\{{.*\}} (\d+)$", text, re.MULTILINE)]
        assert counts == sorted(counts) and counts[-1] == service.metric(f"{name}_count") > 0


def references(value):
    match value:
        case {"$ref": reference}:
            yield reference
        case dict():
            yield from (each for item in value.values() for each in references(item))
        case list():
            yield from (each for item in value for each in references(item))


def test_the_description_fits_the_service(service, picture):
    document = service.ask("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    for reference in references(document):
        where = document
        for part in reference.removeprefix("#/").split("/"):
            where = where[part]
    for path, methods in document["paths"].items():
        for method in methods:
            assert service.ask(method.upper(), path).status != 405
    prediction = document["components"]["schemas"]["Prediction"]
    (row,) = service.predict(picture).json
    assert set(prediction["required"]) <= set(row)
    assert (
        "1,000,000 bytes" in document["paths"]["/v1/predict"]["post"]["requestBody"]["description"]
    )


def test_every_status_of_the_code_is_described():
    answers = openapi_document("1", ServiceLimits())["paths"]["/v1/predict"]["post"]["responses"]
    source = "".join(
        (ROOT / "runtime/organ_infer/serve" / name).read_text() for name in ("app.py", "bodies.py")
    )
    raised = set(re.findall(r"\b(4\d\d|5\d\d)\b,?\s*\)", source)) - {"499"}
    assert {"400", "408", "413", "415", "500", "503"} <= raised <= set(answers)


# Bad clients.


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [b"", b"P", b"POST /v1/predict HTTP/1.1\r\n", OK, OK + b"Content-Length: 5"],
)
def test_a_head_that_does_not_end_is_answered_with_408(service, sent):
    with service.connect() as connection:
        connection.sendall(sent)
        started = time.monotonic()
        answer = receive(connection)
        assert answer.status == 408 and "did not arrive in 1 s" in answer.error
        assert answer.headers["connection"] == "close" and connection.recv(1) == b""
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_head_byte_by_byte_has_no_more_time(service):
    with service.connect() as connection, contextlib.suppress(OSError):
        started = time.monotonic()
        for byte in OK * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
    assert time.monotonic() - started < 20


def test_the_second_head_of_a_connection_has_a_time_too(service):
    with service.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert receive(connection).status == 200
        connection.sendall(b"GET /healthz HT")
        assert receive(connection).status == 408


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["length", "chunks", "form"])
def test_a_body_that_does_not_end_is_answered_with_408(service, kind, picture):
    body, headers = form(("a.png", picture))
    with service.connect() as connection:
        if kind == "chunks":
            connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        elif kind == "form":
            head = b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(
                OK + head % (headers["Content-Type"].encode(), len(body)) + body[:-50]
            )
        else:
            connection.sendall(OK + b"Content-Length: 100\r\n\r\nhello")
        answer = receive(connection)
    assert answer.status == 408 and "the body did not arrive in 1.5 s" in answer.error


@pytest.mark.slow
def test_many_hanging_clients_keep_no_other_waiting(service, picture):
    with contextlib.ExitStack() as stack:
        for i in range(20):
            connection = stack.enter_context(service.connect())
            connection.sendall(OK + (b"Content-Length: 1000\r\n\r\nhello" if i % 2 else b""))
        assert service.predict(picture).status == 200


def test_too_many_connections_are_answered_with_503(service):
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(40)]
        answers = [receive(connection) for connection in connections]
    refused = [answer for answer in answers if answer.status == 503]
    assert len(refused) >= 10 and refused[0].headers["retry-after"] == "1"
    assert {answer.status for answer in answers} == {408, 503}


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "head", [b"Content-Length: 5368709120\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_5_gigabytes_are_refused_while_they_arrive(service, head):
    before = service.memory()
    piece = b"x" * (1 << 20)
    if b"chunked" in head:
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    sent = 0
    with service.connect() as connection:
        connection.sendall(OK + head + b"\r\n")
        # A client that reads its answer only when it can send no more.
        with contextlib.suppress(OSError):
            while sent < 5 << 30:
                connection.sendall(piece)
                sent += len(piece)
        answer = receive(connection)
    assert answer.status == 413 and "more than 1,000,000 bytes" in answer.error
    assert sent < 5 << 30 and service.memory() - before < 50 << 20


def test_a_client_that_asks_first_sends_nothing(service):
    with service.connect() as connection:
        connection.sendall(OK + b"Expect: 100-continue\r\nContent-Length: 5368709120\r\n\r\n")
        assert receive(connection).status == 413


def test_a_client_that_asks_first_may_send_a_small_body(service, picture):
    with service.connect() as connection:
        connection.sendall(
            OK + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(picture)
        )
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(picture)
        assert receive(connection).status == 200


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (OK + b"Content-Length: -5\r\n\r\n", 400),
        (OK + b"Content-Length: five\r\n\r\n", 400),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (OK + b"Content-Length: %s\r\n\r\n" % (b"9" * 19), 413),
        (OK + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
        (OK + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nnot a length\r\n", 400),
        (OK + b"a b: c\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: here\r\nX: %s\r\n\r\n" % (b"x" * 600_000), 431),
    ],
)  # fmt: skip
def test_what_is_no_http_is_one_line(service, sent, status):
    with service.connect() as connection:
        connection.sendall(sent)
        answer = receive(connection)
        assert answer.status == status and "; " in answer.error


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent, status", [(b"garbage\r\n\r\n", 400), (OK + b"Content-Length: 99999999\r\n\r\n", 413)]
)
def test_a_refused_client_that_goes_on_is_left_soon(service, sent, status):
    with service.connect() as connection:
        connection.sendall(sent)
        assert receive(connection).status == status
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 30:
                connection.sendall(b"x" * 10)
                time.sleep(0.05)
        assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_client_that_sends_on_after_its_mistake_sees_the_end_and_no_reset(service):
    with service.connect() as connection:
        connection.sendall(b"garbage\r\n\r\n")
        assert receive(connection).status == 400
        for _ in range(3):
            connection.sendall(b"more")
            time.sleep(0.1)
        assert connection.recv(1) == b""


@pytest.mark.slow
def test_the_rest_of_a_refused_body_that_comes_soon_keeps_the_connection(service, picture):
    with service.connect() as connection:
        connection.sendall(OK + b"Content-Length: 1500000\r\n\r\n" + b"x" * 1_500_000)
        assert receive(connection).status == 413
        time.sleep(2.5)
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(picture) + picture)
        assert receive(connection).status == 200
        # idle connections are closed, this one too
        assert connection.recv(1) == b""


def test_a_good_request_before_a_bad_one_is_answered(service, picture):
    with service.connect() as connection:
        head = OK + b"Content-Length: %d\r\n\r\n" % len(picture)
        connection.sendall(head + picture + head + picture + b"garbage\r\n\r\n")
        answers = b""
        while data := connection.recv(1 << 16):
            answers += data
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"200", b"400"]


def test_a_body_in_chunks_is_read(service, picture):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (picture[:9], picture[9:]))
    with service.connect() as connection:
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert receive(connection).status == 200


def test_requests_over_one_connection(service, picture):
    with service.connect() as connection:
        for _ in range(5):
            connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(picture) + picture)
            assert receive(connection).status == 200


def test_a_request_does_not_wait_for_the_acknowledgment_of_the_last_one(service, picture):
    # Linux acknowledges after 40 ms at the earliest if the client has nothing to send
    seconds = []
    with service.connect() as connection:
        for _ in range(20):
            start = time.perf_counter()
            connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(picture) + picture)
            assert receive(connection).status == 200
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["head", "body", "answer"])
def test_killed_clients_leave_nothing(service, picture, moment):
    whole = OK + b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    for _ in range(25):
        with service.connect() as connection:
            connection.sendall(whole[: {"head": 20, "body": -20, "answer": len(whole)}[moment]])
            # closing sends a reset, as the death of the process does
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_client_that_does_not_take_its_answer_is_left(service):
    answer_bytes = 9_000 * 400
    body = io.BytesIO()
    np.savez_compressed(body, x=np.zeros((9_000, 28, 28), np.uint8))
    name = 'organ_infer_connections_refused_total{reason="answer timeout"}'
    before = service.metric(name)
    with service.connect(receive_buffer=4096) as connection:
        content = body.getvalue()
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        service.wait_for(name, before + 1)
        received = 0
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                received += len(data)
    assert received < answer_bytes


# Inside one process: what a real model does not do.


def in_process(test, classifier, *, classify=None, **limits):
    """Run a coroutine function with the application and its service."""

    async def run():
        rows = JsonlFormat(RowOptions(classifier.classes, classifier.manifest.task.organs()))
        service = Service(classifier, rows, ServiceLimits(**limits), classify)
        service.start()
        try:
            return await asyncio.wait_for(test(create_app(service), service), 60)
        finally:
            await service.stop()

    return asyncio.run(run())


def test_an_answer_counts_as_memory_until_it_is_taken(classifier, slices):
    content = array_file(np.repeat(slices, 10, 0))
    held, go = [], asyncio.Event()

    async def test(app, service):
        async def slow(scope, receive, send):
            async def send_slowly(message):
                held.append(service.memory.bytes)
                await go.wait()
                await send(message)

            await app(scope, receive, send_slowly)

        first = asyncio.create_task(ask_app(slow, "POST", "/v1/predict", content))
        while not held:
            await asyncio.sleep(0.001)
        # the answer has some 200,000 bytes, the body 320,000
        refused = await ask_app(app, "POST", "/v1/predict", content)
        go.set()
        answer = await first
        good = await ask_app(app, "POST", "/v1/predict", content)
        return refused, answer, good, service.memory.bytes

    refused, answer, good, left = in_process(
        test, classifier, request_bytes=400_000, held_bodies=1, queue=5
    )
    assert answer.status == 200 == good.status and len(answer.json) == 400 == len(good.json)
    assert held[0] == len(answer.content) == int(answer.headers["content-length"])
    assert refused.status == 503 and "too many large requests" in refused.error
    assert left == 0 and len(held) > 3


def test_nothing_is_classified_for_a_client_that_has_gone(classifier, picture):
    async def classify(batch):
        pytest.fail("it was classified")

    async def test(app, service):
        async def gone(scope, receive, send):
            messages = [{"type": "http.disconnect"}, await receive()]

            async def receive_once():
                return messages.pop() if len(messages) > 1 else messages[0]

            await app(scope, receive_once, send)

        return await ask_app(gone, "POST", "/v1/predict", picture), service.metrics.requests

    answer, requests = in_process(test, classifier, classify=classify)
    assert answer.status == 499 and requests["/v1/predict", 499] == 1


def test_a_full_queue_is_answered_with_503(classifier, picture):
    go = asyncio.Event()

    async def classify(batch):
        await go.wait()
        return classify_together(classifier, [batch])[0]

    async def test(app, service):
        waiting = [
            asyncio.create_task(ask_app(app, "POST", "/v1/predict", picture)) for _ in range(2)
        ]
        while service.metrics.waiting < 2:
            await asyncio.sleep(0.001)
        refused = await ask_app(app, "POST", "/v1/predict", picture)
        go.set()
        answers = await asyncio.gather(*waiting)
        return refused, [*answers, await ask_app(app, "POST", "/v1/predict", picture)]

    refused, answers = in_process(test, classifier, classify=classify, queue=2)
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert refused.error == "2 requests are waiting; send it again later"
    assert [answer.status for answer in answers] == [200] * 3


def test_slices_are_counted(classifier, slices):
    async def test(app, _):
        return [
            await ask_app(app, "POST", "/v1/predict", array_file(slices[:count]))
            for count in (5, 6)
        ]

    good, refused = in_process(test, classifier, slices=5)
    assert good.status == 200 and len(good.json) == 5
    assert refused.status == 413 and refused.error.startswith("more than 5 slices")


def test_a_failing_model_is_in_the_answer_and_in_the_health_until_it_works(classifier, picture):
    errors = [DeviceError("the GPU fell off"), RuntimeError("surprise"), MemoryError(), None]

    async def classify(batch):
        error = errors.pop(0)
        if error is not None:
            raise error
        return classify_together(classifier, [batch])[0]

    async def test(app, _):
        return [
            (
                await ask_app(app, "POST", "/v1/predict", picture),
                await ask_app(app, "GET", "/healthz"),
            )
            for _ in range(4)
        ]

    (device, failing), (surprise, _), (memory, _), (good, healthy) = in_process(
        test, classifier, classify=classify
    )
    assert device.status == 500 and device.error == "the GPU fell off"
    assert failing.status == 503 and failing.json["error"] == "the GPU fell off"
    # what a client cannot use stays in the messages of the service
    assert surprise.status == 500 and "surprise" not in surprise.error
    assert memory.status == 503
    assert good.status == 200 and healthy.status == 200


def test_requests_at_once_are_classified_together_and_none_is_lost(classifier, pictures):
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())]

    async def test(app, service):
        answers = await asyncio.gather(
            *(
                ask_app(app, "POST", "/v1/predict", content, query=b"name=%d" % i)
                for i, content in enumerate(contents)
            )
        )
        return answers, service.metrics.batches.lines("x")[-1]

    answers, runs = in_process(test, classifier, batch_wait=10.0)
    assert [answer.json[0]["path"] for answer in answers] == [f"{i}" for i in range(len(contents))]
    for answer, content in zip(answers, contents, strict=True):
        (expected,) = classifier.predict_bytes(content)
        assert answer.json[0]["label"] == expected.label
    assert int(runs.split()[1]) < len(contents) / 2


# Signals.


@pytest.fixture
def own_service(bundle, tmp_path):
    """A service for one test, which waits long for its clients when it ends."""
    arguments = ("--bundle", bundle, "--device", "cpu", "--shutdown-timeout", 300)
    with running_service(tmp_path / "log", *arguments) as running:
        yield running


@pytest.mark.parametrize(
    "number, code, text", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_lets_a_request_in_progress_finish(own_service, picture, number, code, text):
    with own_service.connect() as connection, own_service.connect() as idle:
        connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(picture) + picture[:-10])
        own_service.wait_for("organ_infer_body_bytes", len(picture) - 10)
        own_service.process.send_signal(number)
        assert idle.recv(1) == b""
        with pytest.raises(OSError):
            for _ in range(200):
                own_service.connect().close()
                time.sleep(0.01)
        connection.sendall(picture[-10:])
        assert receive(connection).status == 200
        assert own_service.process.wait(60) == code
    assert own_service.messages() == f"organ-infer: {text}\n"


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_clients(own_service):
    with own_service.connect() as connection:
        connection.sendall(OK + b"Content-Length: 100\r\n\r\nhello")
        own_service.wait_for("organ_infer_body_bytes", 5)
        own_service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert own_service.process.poll() is None
        started = time.monotonic()
        assert own_service.stop() == (143, "organ-infer: terminated\n")
        assert time.monotonic() - started < 30


def test_a_client_that_hangs_does_not_keep_the_service_from_ending(bundle, tmp_path):
    arguments = ("--bundle", bundle, "--device", "cpu", "--shutdown-timeout", 1)
    with running_service(tmp_path / "log", *arguments) as running, running.connect() as connection:
        connection.sendall(OK + b"Content-Length: 100\r\n\r\nhello")
        running.wait_for("organ_infer_body_bytes", 5)
        started = time.monotonic()
        assert running.stop() == (143, "organ-infer: terminated\n")
        assert 0.9 < time.monotonic() - started < 30


@linux
def test_a_closed_standard_output_is_no_error(bundle, tmp_path):
    """The address cannot be told, and the service works."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f'exec "$0" -m organ_infer serve --port {port} --bundle "$1" >&-'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable, str(bundle)],
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            time.sleep(0.05)
        time.sleep(0.2)
        process.terminate()
        assert process.communicate(timeout=60)[1] == "organ-infer: terminated\n"
        assert process.returncode == 143


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(own_service, picture):
    """Each connection sends one request. Those that were accepted get their whole answer."""
    outcomes, stop = [], threading.Event()

    def send():
        while not stop.is_set():
            try:
                connection = own_service.connect()
            except OSError:
                outcomes.append("refused")
                return
            with connection:
                head = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(picture)
                try:
                    connection.sendall(OK + head + picture)
                    outcomes.append(receive(connection).status)
                except (OSError, ValueError) as e:
                    outcomes.append(type(e).__name__)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 30
    while len(outcomes) < 40 and time.monotonic() < until:
        time.sleep(0.01)
    own_service.process.send_signal(signal.SIGTERM)
    assert own_service.process.wait(60) == 143
    stop.set()
    for thread in threads:
        thread.join(60)
    counts = {each: outcomes.count(each) for each in outcomes}
    assert counts[200] >= 40
    # Connections that the kernel took and the service had not yet accepted, at most one per thread.
    assert sum(counts.values()) - counts[200] <= 2 * len(threads), counts


def test_signals_that_are_ignored_stay_ignored(bundle, tmp_path):
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from organ_infer.cli import main
sys.exit(main(["serve", "--port", "0", "--bundle", {str(bundle)!r}]))"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 143


# Start.


def start(capfd, *arguments):
    """The exit code and the messages of a service that cannot start."""
    code = main(["serve", *arguments])
    output = capfd.readouterr()
    assert output.out == ""
    return code, output.err


def test_a_port_in_use_is_one_line(capfd):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert start(capfd, "--port", str(port)) == (
            2,
            f"organ-infer: error: 127.0.0.1:{port}: cannot listen there (Address already in use);"
            " choose another --host or --port\n",
        )


@pytest.mark.parametrize(
    "host, clients", [("localhost", ["127.0.0.1"]), ("::", ["127.0.0.1", "::1"])]
)
def test_addresses_to_listen_at(host, clients):
    from organ_infer.serve.server import address_of, open_socket

    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with open_socket(host, 0) as listening:
        port = listening.getsockname()[1]
        shown = {"localhost": "127.0.0.1", "::": "[::]"}[host]
        assert address_of(listening) == f"http://{shown}:{port}"
        for client in clients:
            socket.create_connection((client, port), 10).close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid", "a" * 70, "::ffff:g"])
def test_a_host_that_is_not_here_is_one_line(capfd, host):
    code, messages = start(capfd, "--host", host, "--port", "0")
    assert code == 2 and messages.count("\n") == 1 and "cannot listen there (" in messages


def test_a_port_without_permission_is_one_line(capfd, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    code, messages = start(capfd, "--port", "80")
    assert code == 2 and "127.0.0.1:80: cannot listen there (Permission denied);" in messages


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "h11"])
def test_a_missing_package_is_one_line(capfd, monkeypatch, name):
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    code, messages = start(capfd, "--port", "0")
    assert code == 2 and messages.count("\n") == 1
    assert f"{name} cannot be loaded (" in messages
    assert messages.endswith("pip install 'organ-infer[serve]'\n")


def test_a_bundle_that_cannot_be_opened_is_one_line(capfd, tmp_path):
    code, messages = start(capfd, "--port", "0", "--bundle", str(tmp_path))
    assert code == 2 and messages.count("\n") == 1 and "manifest.json" in messages


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--port", "65536"], "expected a port from 0 to 65,535, found '65536'"),
        (["--port", "http"], "expected a port from 0 to 65,535, found 'http'"),
        (["--max-wait", "-1"], "expected a number of milliseconds from 0 to 10,000"),
        (["--body-timeout", "nan"], "expected a number of seconds from 0.1 to 86,400"),
        (["--queue", "0"], "expected a whole number from 1 to 100,000"),
        (["--host", ""], "--host: the value is empty"),
        (
            ["scan.png"],
            "expected no paths, found 'scan.png'; for images in a directory named serve",
        ),
        (["--mask", "x"], "unrecognized arguments"),
        (["--orientation", "XX"], "orientation"),
    ],
)
def test_arguments_that_cannot_be_meant(capfd, arguments, text):
    code, messages = start(capfd, *arguments)
    assert code == 2 and messages.count("\n") == 1 and text in messages


def test_every_option_of_a_limit_reaches_the_service():
    from organ_infer.cli.serve_arguments import parse_serve

    options = {
        "--request-limit": ("request_bytes", 5), "--files-per-request": ("files", 6),
        "--slices-per-request": ("slices", 7), "--pixel-limit": ("pixels", 8),
        "--file-limit": ("file_bytes", 9), "--queue": ("queue", 10), "--connections": ("connections", 11),
        "--header-timeout": ("header_seconds", 12), "--body-timeout": ("body_seconds", 13),
        "--shutdown-timeout": ("shutdown_seconds", 14),
    }  # fmt: skip
    arguments = [text for name, (_, value) in options.items() for text in (name, str(value))]
    parsed = parse_serve([*arguments, "--max-wait", "3", "--max-batch", "17", "--any-modality"])
    expected = dict(options.values()) | {"batch_wait": 0.003, "any_modality": True}
    assert parsed.limits == ServiceLimits(**expected) and parsed.batch_size == 17
    defaults = parse_serve([])
    assert defaults.limits == ServiceLimits() and defaults.batch_size == 64
    assert (defaults.host, defaults.port) == ("127.0.0.1", 8080)


def test_a_directory_named_serve_is_still_a_directory(
    bundle, pictures, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "a.png").write_bytes((pictures / "s00.png").read_bytes())
    for arguments in (["./serve"], ["--quiet", "serve"]):
        assert main(["--bundle", str(bundle), *arguments]) == 0
        assert capfd.readouterr().out.endswith("serve/a.png\n")


def test_nothing_of_the_service_is_loaded_before_it_is_needed(bundle, pictures):
    heavy = ["starlette", "uvicorn", "h11", "anyio", "asyncio", "organ_infer.serve"]
    assert loaded("import organ_infer; dir(organ_infer)", heavy) == []
    code = f"from organ_infer.cli import main\nmain(['--bundle', {str(bundle)!r}, {str(pictures / 's00.png')!r}])"
    assert loaded(code, heavy) == []
    help_code = "from organ_infer.cli import main\nmain(['serve', '--help'])"
    assert loaded(help_code, [*heavy[:-1], "numpy", "onnxruntime", "dataclasses"]) == []


@needs_default
def test_the_packaged_model_answers_right(tmp_path):
    with running_service(tmp_path / "log", "--device", "cpu") as running:
        files = [
            (path.name, path.read_bytes()) for path in sorted((ROOT / "examples").glob("*.png"))
        ]
        rows = running.predict(*form(*files)).json
        # the console of the page: a form of two files, then one image as the body
        page = (ROOT / "docs" / "deploy" / "service.md").read_text()
        shown = re.findall(r"^,?\{.*$", page.partition("```console")[2].partition("```\n")[0], re.M)
        image = (ROOT / "examples" / "liver-1.png").read_bytes()
        text = (ROOT / "README.md").read_bytes()
        answers = (
            running.predict(*form(("liver-1.png", image), ("README.md", text))),
            running.predict(image, query="?name=liver"),
        )
    lines = [
        line for answer in answers for line in answer.content.decode().splitlines() if "{" in line
    ]
    number = re.compile(r"0\.\d+")
    for line, expected in zip(lines, shown, strict=True):
        start = number.sub("#", expected.removesuffix(" ..."))
        assert number.sub("#", line).startswith(start)
    right = sum(row["path"].rpartition("-")[0] == row["label"] for row in rows)
    assert len(rows) == 44 and right >= 42


# Pages.


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The directory of a page, and files around it that must not be served."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "secret.txt").write_text("secret")
    (folder / "web-other").mkdir()
    (folder / "web-other" / "secret.txt").write_text("secret")
    web = folder / "web"
    (web / "sub").mkdir(parents=True)
    for name in (
        "index.html",
        "app.js",
        "module.mjs",
        "ort.wasm",
        "edge_deep.onnx",
        "style.css",
        "a.json",
        "sub/index.html",
    ):
        (web / name).write_text(f"content of {name}")
    (web / ".env").write_text("secret")
    (web / ".git").mkdir()
    (web / ".git" / "config").write_text("secret")
    (web / "out.txt").symlink_to(folder / "secret.txt")
    (web / "outside").symlink_to(folder / "web-other")
    (web / "circle").symlink_to("circle")
    return web


@pytest.fixture(scope="module")
def web_service(bundle, pages, tmp_path_factory):
    log = tmp_path_factory.mktemp("service") / "log"
    with running_service(log, "--bundle", bundle, "--device", "cpu", "--web", pages) as running:
        yield running


@pytest.mark.parametrize(
    "path, kind, name",
    [
        ("/", "text/html; charset=utf-8", "index.html"),
        ("/index.html", "text/html; charset=utf-8", "index.html"),
        ("/app.js", "text/javascript; charset=utf-8", "app.js"),
        ("/module.mjs", "text/javascript; charset=utf-8", "module.mjs"),
        ("/ort.wasm", "application/wasm", "ort.wasm"),
        ("/edge_deep.onnx", "application/octet-stream", "edge_deep.onnx"),
        ("/style.css?v=1", "text/css; charset=utf-8", "style.css"),
        ("/a.json", "application/json; charset=utf-8", "a.json"),
        ("/sub/", "text/html; charset=utf-8", "sub/index.html"),
    ],
)
def test_pages_have_their_content_types(web_service, path, kind, name):
    answer = web_service.ask("GET", path)
    assert (answer.status, answer.content) == (200, f"content of {name}".encode())
    assert answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = web_service.ask("HEAD", path)
    assert (head.status, head.content) == (200, b"")
    again = web_service.ask("GET", path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/sub/../../secret.txt",
        "/../web-other/secret.txt", "//etc/passwd", "/%2fetc%2fpasswd", "/etc/passwd", "/..\\secret.txt",
        "/.env", "/.git/config", "/out.txt", "/outside/secret.txt", "/circle", "/index.html%00", "/" + "a" * 300,
        "/sub/%2e%2e/.env", "/nothing", "/index.html/x",
    ],
)  # fmt: skip
def test_nothing_outside_the_directory_is_served(web_service, path):
    with web_service.connect() as connection:
        # a client library would tidy the path up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        answer = receive(connection)
    assert (
        answer.status == 404 and b"secret" not in answer.content and b"root" not in answer.content
    )
    assert "Traceback" not in web_service.messages()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_not_found(web_service, pages):
    (pages / "hidden.txt").write_text("secret")
    (pages / "hidden.txt").chmod(0)
    assert web_service.ask("GET", "/hidden.txt").status in (404, 500)


def test_the_service_s_own_paths_come_first(web_service, pages, picture):
    assert web_service.predict(picture).status == 200
    assert web_service.ask("GET", "/healthz").json["status"] == "ok"
    assert web_service.ask("POST", "/", b"x").status == 405
    assert web_service.ask("GET", "/v1/predict").status == 404


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")]
)
def test_a_directory_without_a_page_is_one_line(capfd, tmp_path, make):
    make(tmp_path / "web")
    code, messages = start(capfd, "--port", "0", "--web", str(tmp_path / "web"))
    assert code == 2 and messages.count("\n") == 1
    assert "index.html cannot be read (" in messages and "name the directory of a page" in messages
