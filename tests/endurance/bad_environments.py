"""Rows of bad_input.py that run the command in surroundings that it does not expect: names, lists, places to write to,
file systems, variables, limits of the process. Each yields `same` (all answers, and the right ones), `refused` (one line
and an exit code that is not 0), or `crashed`, `different` and `hung` with what was seen."""

import csv
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.png"))[:5]
# Seconds after which a run of a few slices is called hung. A run takes less than one.
HUNG = 60
# The user ID of nobody.
NOBODY = 65_534

Outcomes = Iterable[str]


@dataclass(frozen=True)
class Run:
    """The end of a command: its exit code, None if it was hung, and what it wrote."""

    code: int | None
    out: bytes
    err: bytes


def run(
    *arguments: str | bytes,
    variables: Mapping[str, str | bytes | None] | None = None,
    stdin: bytes | None = None,
    options: Sequence[str] = (),
    prefix: Sequence[str] = (),
    before: Callable[[], None] | None = None,
    **more: Any,
) -> Run:
    """Run the command.

    Args:
        arguments: Of the command.
        variables: Of the environment, changed; None takes one away.
        stdin: Its standard input.
        options: Of Python.
        prefix: A command that runs Python, with its arguments.
        before: Called in the child process.
        more: Of subprocess.Popen.
    """
    environment: dict[bytes, bytes] = dict(os.environb)
    runtime = os.fsencode(ROOT / "runtime")
    environment |= {b"PYTHONPATH": runtime, b"ORGAN_INFER_CACHE": b""}
    for name, value in (variables or {}).items():
        environment.pop(name.encode(), None)
        if value is not None:
            environment[name.encode()] = os.fsencode(value)
    begun = subprocess.Popen(
        [*prefix, sys.executable, *options, "-m", "organ_infer", *arguments],
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=more.pop("stdout", subprocess.PIPE),
        stderr=more.pop("stderr", subprocess.PIPE),
        env=environment,
        preexec_fn=before,
        **more,
    )
    try:
        out, err = begun.communicate(stdin, HUNG)
    except subprocess.TimeoutExpired:
        begun.kill()
        out, err = begun.communicate()
        return Run(None, out or b"", err or b"")
    return Run(begun.returncode, out or b"", err or b"")


def judged(
    done: Run,
    expected: list[str] | None = None,
    labels_in: Callable[[bytes], list[str]] | None = None,
) -> str:
    """What a run is. `labels_in` finds the labels in its output; without `expected` only its end counts."""
    said = done.err.decode("utf-8", "backslashreplace")
    if done.code is None:
        return f"hung: {said[-300:]}"
    if done.code < 0 or "Traceback" in said or "unexpected" in said:
        return f"crashed: {done.code}: {said[-300:]}"
    strange = [line for line in said.splitlines() if not line.startswith("organ-infer: ")]
    if strange:
        return f"crashed: {done.code}: {strange[0]}"
    if done.code:
        return "refused" if said else f"crashed: {done.code} without a word"
    if expected is None:
        return "same"
    try:
        found = (labels_in or found_labels)(done.out)
    except Exception as e:
        return f"different: {done.out[:60]!r}: {e!r:.200}"
    return "same" if found == expected else f"different: {found} instead of {expected}"


@cache
def labels() -> list[str]:
    """The labels of EXAMPLES."""
    from organ_infer import OrganClassifier

    with OrganClassifier(device="cpu", threads=1) as classifier:
        return [answer.label for answer in classifier.predict_paths(map(str, EXAMPLES))]


def strict_rows(text: bytes) -> list[dict[str, Any]]:
    """JSON lines as a strict parser reads them: UTF-8, and no half of a surrogate pair."""
    rows = [json.loads(line) for line in text.decode("utf-8").splitlines()]
    json.dumps(rows, ensure_ascii=False).encode("utf-8")
    return rows


def found_labels(text: bytes) -> list[str]:
    return [row["label"] for row in strict_rows(text)]


# Names and lists.


def odd_names(rng: random.Random) -> list[bytes]:
    """Names of files: bytes of any value, quotes, brackets, line breaks, direction marks, long ones."""
    fixed = [b"a b", b"a\tb", b"a\nb", b"a\rb", b'a"b', b"a'b", b"a,b;c", b"[a]", b"*a?", b"{a}", b"-a", b"--format",
             b"a#1", b"a%20b", b"~", b"$HOME", b"a\\b", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xae",
             "é".encode(), "e\u0301".encode(), "\U0001f9e0".encode(), b"\x1b[31m", b"\x7f", b"\x01", b"x" * 251,
             b"=1+1", b"@a", b"\xef\xbb\xbfa"]  # fmt: skip
    drawn = [
        bytes(rng.choice([b for b in range(1, 256) if b != 47]) for _ in range(rng.randint(1, 40)))
        for _ in range(20)
    ]
    return [name + b".png" for name in [*fixed, *drawn]]


def lists(paths: list[bytes]) -> Iterator[tuple[bytes, list[str], list[bytes]]]:
    """A list of paths as programs write it, the options that read it, and the paths that it holds."""
    yield b"\0".join(paths), ["-0"], paths
    yield b"\0".join(paths) + b"\0", ["-0"], paths
    lines = [path for path in paths if b"\n" not in path and b"\r" not in path]
    yield b"\n".join(lines), [], lines
    yield b"\n".join(lines) + b"\n\n", [], lines
    yield b"\r\n".join(lines) + b"\r\n", [], lines
    plain = [path for path in lines if not path.startswith(b"\xef\xbb\xbf")]
    yield b"\xef\xbb\xbf" + b"\n".join(plain), [], plain


def names(count: int, rng: random.Random) -> Outcomes:
    """Every path of a list is answered once, in its order, in text that a strict parser reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = os.fsencode(name)
        paths = []
        for at, odd in enumerate(odd_names(rng)):
            paths.append(os.path.join(folder, odd))
            shutil.copy(EXAMPLES[at % len(EXAMPLES)], paths[-1])
        wanted = dict(zip(paths, (labels() * len(paths))[: len(paths)], strict=True))
        for text, options, held in lists(paths):
            expected = [wanted[path] for path in held]
            for form, labels_in in READERS.items():
                done = run("--files-from", "-", "--format", form, *options, stdin=text)
                yield judged(done, expected, labels_in)
        for path in paths:
            for given in (path, b"./" + os.path.basename(path)):
                yield judged(run("--format", "jsonl", "--", given, cwd=name), [wanted[path]])
        yield judged(run("--format", "jsonl", name), [wanted[path] for path in sorted(paths)])
        for text in (
            b"\xff\xfea\0.\0",
            b"\xfe\xff\0a",
            b"a\0b\0",
            b"\0",
            b"\n" * 100,
            b"x" * 100_000,
        ):
            yield judged(run("--files-from", "-", "--quiet", stdin=text))


def _in_csv(text: bytes) -> list[str]:
    return [row["label"] for row in csv.DictReader(io.StringIO(text.decode(), newline=""))]


READERS: dict[str, Callable[[bytes], list[str]]] = {
    "jsonl": found_labels,
    "csv": _in_csv,
    "text": lambda text: [line.split()[0].decode() for line in text.split(b"\n") if line.strip()],
}


# Where answers are written.


def places(count: int, rng: random.Random) -> Outcomes:
    """What --output names: afterwards it holds every answer, or what it held before."""
    arguments = [str(path) for path in EXAMPLES]
    for kind in (
        "new", "file", "link", "dangling", "loop", "directory", "missing", "long", "bytes", "hard", "mode 0", "fifo",
        "partial is a directory", "partial is a link", "read-only directory",
    ):  # fmt: skip
        for runs in (1, 2, 4):
            if kind == "fifo" and runs > 1:
                continue
            with tempfile.TemporaryDirectory() as name:
                target, before = _place(kind, Path(name))
                ended = _at_once(
                    runs, ["--format", "jsonl", "--output", os.fspath(target), *arguments]
                )
                outcomes = [judged(done) for done in ended]
                yield from (what for what in outcomes if what not in ("same", "refused"))
                if kind == "fifo":
                    yield "refused"
                    continue
                held = target.read_bytes() if target.is_file() else None
                if held is not None and held != before:
                    yield judged(Run(0, held, b""), labels())
                elif "same" in outcomes:
                    yield f"different: {kind}: exit code 0, and nothing was written"
                else:
                    yield "refused"


def _place(kind: str, folder: Path) -> tuple[Path, bytes | None]:
    """A place to write to, and what it holds."""
    target, old = folder / "out.jsonl", b"held before\n"
    partial = folder / "out.jsonl.partial"
    if kind == "file":
        target.write_bytes(old)
    elif kind == "link":
        (folder / "behind").write_bytes(old)
        target.symlink_to("behind")
    elif kind == "dangling":
        target.symlink_to("behind")
        return target, None
    elif kind == "loop":
        target.symlink_to("out.jsonl")
        return target, None
    elif kind == "directory":
        target.mkdir()
        return target, None
    elif kind == "missing":
        return folder / "none" / "out.jsonl", None
    elif kind == "long":
        return folder / ("x" * 255), None
    elif kind == "bytes":
        return Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.jsonl")), None
    elif kind == "hard":
        target.write_bytes(old)
        os.link(target, folder / "other")
    elif kind == "mode 0":
        target.write_bytes(old)
        target.chmod(0)
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "partial is a directory":
        partial.mkdir()
    elif kind == "partial is a link":
        partial.symlink_to("elsewhere")
    elif kind == "read-only directory":
        folder.chmod(0o500)
    return target, target.read_bytes() if target.is_file() else None


def _at_once(count: int, arguments: list[str]) -> list[Run]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: run(*arguments), range(count)))


REFUSING = """
import errno, fcntl, os, sys
call, number = sys.argv.pop(1), getattr(errno, sys.argv.pop(1))
def refuse(*given, **named):
    raise OSError(number, os.strerror(number))
for module in (os, fcntl):
    if hasattr(module, call):
        setattr(module, call, refuse)
from organ_infer.cli import main
sys.exit(main(sys.argv[1:]))
"""
CALLS = ("fsync", "chmod", "fchmod", "flock", "lockf", "link", "symlink", "utime", "statvfs", "sched_getaffinity", "readlink")  # fmt: skip
ERRORS = ("EINVAL", "ENOTSUP", "EPERM", "EACCES", "ENOSYS", "ENOLCK", "EIO", "ENOSPC", "EROFS")


def refusing_file_systems(count: int, rng: random.Random) -> Outcomes:
    """A file system that refuses one call, with each error: every answer is written, or none and one line."""
    for call in CALLS:
        for error in ERRORS:
            with tempfile.TemporaryDirectory() as name:
                target = Path(name, "out.jsonl")
                done = _python(
                    REFUSING,
                    call,
                    error,
                    "--format",
                    "jsonl",
                    "--output",
                    str(target),
                    *map(str, EXAMPLES),
                )
                what = judged(done)
                if what == "same":
                    what = judged(Run(0, target.read_bytes(), b""), labels())
                if what == "refused" and target.exists():
                    what = f"different: {call} {error}: refused, and the file is there"
                yield what


def _python(code: str, *arguments: str, **more: Any) -> Run:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime"), "ORGAN_INFER_CACHE": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=HUNG,
            env=environment,
            **more,
        )
    except subprocess.TimeoutExpired as e:
        return Run(None, e.stdout or b"", e.stderr or b"")
    return Run(done.returncode, done.stdout, done.stderr)


# Variables, streams, switches of Python.

VARIABLES: dict[str, list[str | bytes | None]] = {
    "HOME": [None, "", "/nonexistent", "/dev/null", b"/tmp/\xff", "relative", "x" * 5000],
    "XDG_CACHE_HOME": ["", "/nonexistent", "/dev/null", b"/tmp/\xff", "relative", "x" * 5000],
    "ORGAN_INFER_CACHE": [None, "/nonexistent/a", "/dev/null", b"/tmp/\xff-cache", "x" * 5000, "/proc"],
    "ORGAN_INFER_BUNDLE": ["", "/nonexistent", "/dev/null", b"/tmp/\xff", "/proc"],
    "TMPDIR": ["/nonexistent", b"/tmp/\xff", "/dev/null"],
    "LANG": ["C", "xx_YY.nonsense", "de_DE.ISO-8859-1"],
    "LC_ALL": ["C", "POSIX", "nonsense"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "ascii:strict"],
    "PYTHONUTF8": ["0", "1"],
    "COLUMNS": ["0", "1", "-5", "x", "1000000"],
    "TERM": [None, "dumb", "nonsense"],
    "OMP_NUM_THREADS": ["0", "1", "x", "999999"],
    "ORT_DISABLE_TELEMETRY": ["0", "1", ""],
    "PYTHONWARNINGS": ["error"],
    "PYTHONOPTIMIZE": ["2"],
    "PYTHONDEVMODE": ["1"],
    "CUDA_VISIBLE_DEVICES": ["", "x", "-1"],
    "NO_COLOR": ["1"],
    "PYTHONHASHSEED": ["0"],
    "PYTHONSAFEPATH": ["1"],
    "PYTHONNOUSERSITE": ["1"],
    "MALLOC_ARENA_MAX": ["1"],
}  # fmt: skip


def environments(count: int, rng: random.Random) -> Outcomes:
    """Variables of every kind, closed streams, a current directory that is gone, switches of Python."""
    given = ["--format", "jsonl", *map(str, EXAMPLES)]
    for name, values in VARIABLES.items():
        for value in values:
            done = run(*given, variables={name: value})
            what = judged(done, labels())
            yield what if what in ("same", "refused") else f"{what} with {name}={value!r:.60}"
    for switches in (
        ["-O"],
        ["-OO"],
        ["-E"],
        ["-I", "-X", "utf8=0"],
        ["-X", "dev"],
        ["-W", "error"],
        ["-B"],
        ["-u"],
    ):
        # Without PYTHONPATH the installed package answers.
        done = run(*given, options=switches)
        yield judged(done, labels())
    for closed in ([0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]):
        # Files that are opened may get the number of a standard stream.
        done = run(*given, before=lambda closed=closed: [os.close(number) for number in closed])
        yield judged(
            done if 2 not in closed else Run(done.code, done.out, b"organ-infer: (closed)"),
            labels() if 1 not in closed else None,
        )
    with tempfile.TemporaryDirectory() as name:
        gone = Path(name, "gone")
        gone.mkdir()
        done = run(*given, before=lambda: (os.chdir(gone), os.rmdir(gone)))
        yield judged(done, labels())
        done = run("a.png", before=lambda: os.chdir(name))
        yield judged(done)
    for stream in ("stdout", "stderr"):
        with open("/dev/full", "wb") as full:
            done = run(*given, **{stream: full})
            yield judged(
                Run(done.code, done.out, done.err or b"organ-infer: (full)"),
                labels() if stream == "stderr" else None,
            )


# Limits of the process.


def limits(count: int, rng: random.Random) -> Outcomes:
    """Limits of memory, files, sizes, and threads, from none to enough: all answers, or one line, and never a hang."""
    given = ["--format", "jsonl", *map(str, EXAMPLES)]

    def limited(which: int, value: int, prefix: Sequence[str] = ()) -> str:
        def before() -> None:
            resource.setrlimit(which, (value, value))

        done = run(*given, "--threads", "4", prefix=prefix, before=before)
        what = judged(done, labels())
        if what.startswith("crashed") and (done.code or 0) > 0 and b"organ_infer" not in done.err:
            # Python or the dynamic loader ended before the command began.
            return "refused"
        return what if what in ("same", "refused") else f"{what} with limit {which} at {value:,}"

    for files in (4, 5, 6, 8, 12, 16, 24, 64):
        yield limited(resource.RLIMIT_NOFILE, files)
    for mebibytes in (200, 300, 400, 500, 600, 800, 1200, 2000):
        yield limited(resource.RLIMIT_AS, mebibytes << 20)
    for size in (0, 1, 1000, 100_000):
        yield limited(resource.RLIMIT_FSIZE, size)
    for size in (256, 1024, 4096):
        yield limited(resource.RLIMIT_STACK, size << 10)
    # Threads count per user, and not for root. Another user still has to read this Python.
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and setpriv:
        caps = "-all,+dac_read_search"
        other = [
            setpriv,
            "--reuid",
            str(NOBODY),
            "--clear-groups",
            "--inh-caps",
            caps,
            "--ambient-caps",
            caps,
        ]
        for threads in range(1, 12):
            yield limited(resource.RLIMIT_NPROC, threads, other)
    else:
        print("limits of threads: not tried, which needs root and setpriv", file=sys.stderr)


ROWS: dict[str, Callable[[int, random.Random], Outcomes]] = {
    "file names of any bytes, lists of them as programs write them": names,
    "what `--output` names, one to four runs at once": places,
    "file systems that refuse a call": refusing_file_systems,
    "variables, closed streams, switches of Python": environments,
    "limits of memory, files, sizes and threads": limits,
}
