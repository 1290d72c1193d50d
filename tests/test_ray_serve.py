"""The web service on Ray Serve: arguments, and a local cluster that answers requests."""

import importlib.util
import json
import socket
import sys
import threading
from http.client import HTTPConnection

import pytest
from support.service import form

import organ_infer.ray as beyond
from organ_infer import BundleError, InputError, OrganClassifier, OrganInferError


def serve_problem():
    """Why Ray Serve cannot be used here, or None."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("starlette") is None:
        return "ray or starlette is not installed: pip install 'ray[serve]' '.[ray,serve]'"
    try:
        import ray.serve  # noqa: F401
    except ImportError as e:
        return f"ray.serve cannot be imported ({e}): pip install 'ray[serve]'"
    return None


def test_a_missing_ray_serve_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(
        OrganInferError, match=r"^Ray Serve cannot be loaded \(.*\); pip install 'ray\[serve\]'"
    ):
        beyond.deployment()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"replicas": 0}, "replicas: expected a number of at least 1, found 0"),
        ({"replicas": 1.5}, "replicas: expected a whole number, found 1.5"),
        ({"num_gpus": -1}, "num_gpus: expected a number of at least 0, found -1"),
        ({"batch_wait": float("nan")}, "batch_wait: expected a number of at least 0, found nan"),
    ],
)
def test_arguments_that_cannot_be_meant(options, text):
    with pytest.raises(InputError, match=text):
        beyond.deployment(**options)


def test_the_limits_are_those_of_the_service():
    from organ_infer.serve.limits import ServiceLimits

    assert beyond._limits(None) == ServiceLimits()
    assert beyond._limits(ServiceLimits(files=2)).files == 2
    with pytest.raises(InputError, match=r"^limits: expected ServiceLimits, found \{\}$"):
        beyond._limits({})


@pytest.fixture(scope="module")
def port(bundle):
    """The port of a service of two replicas on a cluster of this machine."""
    if problem := serve_problem():
        pytest.skip(problem)
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.delenv("RAY_ADDRESS", raising=False)
    from organ_infer.serve.limits import ServiceLimits

    try:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        limits = ServiceLimits(request_bytes=500_000)
        application = beyond.deployment(
            bundle, replicas=2, num_cpus=0.5, limits=limits, batch_wait=0.05
        )
        serve.run(application, name="organs", route_prefix="/")
        yield number
    finally:
        serve.shutdown()
        ray.shutdown()
        patch.undo()


def ask(port, method, path, body=None, headers=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def test_a_bundle_that_cannot_be_opened_is_told_at_once(tmp_path):
    if problem := serve_problem():
        pytest.skip(problem)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        beyond.deployment(tmp_path)


def test_replicas_answer_as_the_service_of_one_machine(port, bundle, pictures):
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:12]]
    with OrganClassifier(bundle, device="cpu", threads=1) as opened:
        expected = [opened.predict_bytes(content)[0] for content in contents]
    answers = [None] * len(contents)

    def send(i):
        answers[i] = ask(port, "POST", f"/v1/predict?name={i}", contents[i])

    threads = [threading.Thread(target=send, args=(i,)) for i in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, (status, headers, content) in enumerate(answers):
        (row,) = json.loads(content)
        assert status == 200 and row["path"] == f"{i}" and row["label"] == expected[i].label
        assert list(row["probabilities"].values()) == pytest.approx(
            expected[i].probabilities, abs=1e-6
        )
        assert dict(headers)["content-type"] == "application/json"


def test_forms_and_mistakes_on_ray_serve(port, pictures):
    picture = (pictures / "s00.png").read_bytes()
    status, _, content = ask(port, "POST", "/v1/predict", *form(("a", picture), ("b", b"bad")))
    assert status == 200 and [set(row) >= {"error"} for row in json.loads(content)] == [False, True]
    for body, expected in ((b"bad", 422), (b"", 400), (b"x" * 500_001, 413)):
        status, _, content = ask(port, "POST", "/v1/predict", body)
        assert status == expected, content
    assert ask(port, "GET", "/nothing")[0] == 404
    status, _, content = ask(port, "GET", "/healthz")
    assert status == 200 and json.loads(content)["status"] == "ok"
