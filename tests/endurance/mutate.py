"""Do the tests notice a changed line? `python tests/endurance/mutate.py [TARGET ...] [--sample N] [--jobs N]`

Changes one thing at a time in a copy of the package and runs the target's tests until one fails. Targets and their tests
stand in TARGETS; the ones in Python are changed by their syntax tree, `packing.pyx` by its text, compiled anew each time.
Changed are comparisons, `and`/`or`/`not`, arithmetic, numbers, True/False/None, conditions, what is returned, and whole
`raise` and call statements; texts, types and what is between quotes are not. Prints each survivor with its line before and
after, and a row a target. A mutant that takes longer than LIMIT counts as killed.

UNSEEN names the survivors that were looked at and change nothing that can be seen. Ends in 1 where fewer than 90 % die.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # it forks
LIMIT = 240  # seconds a mutant
GOAL = 0.9
NOTHING = 77
PRELOADED = ("numpy", "PIL.Image", "onnx", "hypothesis", "pytest", "_pytest.assertion.rewrite")
BUNDLES = (
    "tests/test_bundle.py",
    "tests/test_tampering.py",
    "tests/test_manifest_fields.py",
    "tests/test_hostile_graphs.py",
    "tests/test_survivors.py",
)
TARGETS = {
    "runtime/organ_infer/bundle.py": BUNDLES,
    "runtime/organ_infer/manifest.py": BUNDLES,
    "runtime/organ_infer/fields.py": BUNDLES,
    "ext/packing.pyx": ("tests/test_packing.py", "tests/test_survivors.py"),
}
# (line, as changed): why nothing can be seen of it
UNSEEN = {
    "runtime/organ_infer/bundle.py": {
        ("data = file.read(limit + 1)", "2"): "any more than the limit is too much",
    },
    "ext/packing.pyx": {
        ("cdef int past = 0", "cdef int past = 1"): "the call sets it",
        ("return 0", "return 1"): "only -1 is looked at",
        (
            "if low >= -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
            "if low >= -32768.0 and low + width < 32767.0 and low == floor(low) and width == floor(width):",
        ): "the other way gives the same there",
        (
            "if low >= -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
            "if low > -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
        ): "the other way gives the same there",
        (
            "if type_number >= 0 and found != type_number:",
            "if type_number > 0 and found != type_number:",
        ): "0 is no type of slices",
        (
            "if type_number >= 0 and found != type_number:",
            "if type_number >= 1 and found != type_number:",
        ): "0 is no type of slices",
        (
            "run.stride_n = strides[0] if ndim == 3 else 0",
            "run.stride_n = strides[0] if ndim == 3 else 1",
        ): "one slice has no next one",
        (
            "def pack(images, size=28, *, mean=0.5, std=0.5, window=None, threads=1, out=None):",
            "def pack(images, size=28, *, mean=0.5, std=0.5, window=None, threads=2, out=None):",
        ): "the same by two threads",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 1, pixels = 0",
        ): "set in both branches",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 0, pixels = 1",
        ): "from which size on the lock is released",
        ("cdef int type_number = -1, status", "cdef int type_number = -2, status"): "below 0 is none",
        (
            "type_number = _run(images, False, -1, &single)",
            "type_number = _run(images, False, -2, &single)",
        ): "below 0 is none",
        (
            "pixels = single.n * single.h * single.w",
            "pixels = single.n + single.h * single.w",
        ): "from which size on the lock is released",
        (
            "pixels = single.n * single.h * single.w",
            "pixels = single.n * single.h + single.w",
        ): "from which size on the lock is released",
        ("if count > 1:", "if count >= 1:"): "one run on the heap",
        ("if reach[axis] < 0:", "if reach[axis] <= 0:"): "nothing is added",
        ("if reach[axis] < 0:", "if reach[axis] < 1:"): "nothing is added",
    },
}


def unseen(mutant: "Mutant") -> str | None:
    """Why nothing can be seen of it, where that is known."""
    if mutant.before.endswith("except -1:") and mutant.after == mutant.before.replace("-1:", "-2:"):
        return "another number stands for an error"
    return UNSEEN.get(mutant.target, {}).get((mutant.before, mutant.after))


@dataclass(frozen=True)
class Mutant:
    target: str
    line: int
    before: str
    after: str
    source: str  # all of the changed file


# Python, by its syntax tree.

COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COUNTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.LShift: ast.RShift,
    ast.BitOr: ast.BitAnd,
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Each way of changing this node alone."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                other = copy.copy(node)
                other.ops = [*ops[:i], COMPARED[type(op)](), *ops[i + 1 :]]
                yield other
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COUNTED:
            yield ast.BinOp(left, COUNTED[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=None):
            yield ast.Constant(1)
        case ast.If(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Compare | ast.BoolOp):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield ast.Pass()


def is_type(parent: ast.AST, field: str) -> bool:
    return field in ("annotation", "returns", "decorator_list") or isinstance(
        parent, ast.JoinedStr | ast.FormattedValue
    )


def python_mutants(target: str) -> Iterator[Mutant]:
    source = (ROOT / target).read_text()
    lines = source.splitlines()

    def walk(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
        for field, value in ast.iter_fields(parent):
            if is_type(parent, field):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST):
                    yield parent, field, i if isinstance(value, list) else None, child
                    yield from walk(child)

    tree = ast.parse(source)
    for parent, field, i, child in list(walk(tree)):
        for other in changes(child):
            ast.copy_location(other, child)
            put(parent, field, i, other)
            changed = ast.unparse(ast.fix_missing_locations(tree))
            put(parent, field, i, child)
            after = ast.unparse(other).splitlines()[0]
            yield Mutant(target, child.lineno, lines[child.lineno - 1].strip(), after, changed)


def put(parent: ast.AST, field: str, i: int | None, child: ast.AST) -> None:
    if i is None:
        setattr(parent, field, child)
    else:
        getattr(parent, field)[i] = child


# Cython, by its text.

SWAPS = [
    (r"(?<![<>=-])<=(?!=)", "<"),
    (r"(?<![<>=-]) < (?![\w ]+>)", " <= "),
    (r"(?<![<>=-])>=", ">"),
    (r" > (?!=)", " >= "),
    (r"==", "!="),
    (r"!=", "=="),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bnot (?!None)", ""),
    (r" is not None", " is None"),
    (r" is None", " is not None"),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
    (r" \+ ", " - "),
    (r" - (?=\w)", " + "),
    (r" \+= ", " -= "),
    (r" \* ", " + "),
    (r"(?<![\w.\"'\[])(\d+)(\.0)?(?![\w.\"'])", lambda m: f"{int(m[1]) + 1}{m[2] or ''}"),
    (r"^( +)raise .+$", r"\1pass"),
    (r"^( +)if (.+):$", r"\1if not (\2):"),
]
SKIPPED = re.compile(
    r"cimport|^cdef (extern|enum|str LINE)|^ +(cdef (?!.*=)|assert |KEEP_LOCK)|^def _|^import|^from|#"
)


def cython_mutants(target: str) -> Iterator[Mutant]:
    """Of the wrapper alone: what is there for benchmarks is left as it is."""
    lines = (ROOT / target).read_text().splitlines(keepends=True)
    quoted, done = False, False
    for i, line in enumerate(lines):
        done = done or line.startswith("def _nothing")
        if '"""' in line:
            quoted ^= line.count('"""') == 1
            continue
        if quoted or done or SKIPPED.search(line) or not line.strip():
            continue
        for pattern, replacement in SWAPS:
            for match in re.finditer(pattern, line.rstrip("\n")):
                if line[: match.start()].count('"') % 2 and not line.lstrip().startswith("raise"):
                    continue
                if line.lstrip().startswith(("raise", 'f"')) and not pattern.startswith("^"):
                    continue
                changed = (
                    line[: match.start()] + match.expand(replacement) + line[match.end() :]
                    if isinstance(replacement, str)
                    else line[: match.start()] + replacement(match) + line[match.end() :]
                )
                if pattern.startswith("^( +)raise") and line.rstrip().endswith("("):
                    continue  # of several lines: the condition above it stands for it
                source = "".join([*lines[:i], changed, *lines[i + 1 :]])
                yield Mutant(target, i + 1, line.strip(), changed.strip(), source)


# Running them.


class Place:
    """A copy of the tree in which mutants are tried, one after another, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("runtime", "ext", "tests", "examples", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        for name in ("pyproject.toml", "README.md", "setup.py"):
            shutil.copy(ROOT / name, folder)
        self.module = next((folder / "runtime" / "organ_infer").glob("_packing*.so"))
        self.whole = self.module.read_bytes()
        self.objects: list[Path] = []

    def start(self, mutant: Mutant) -> int:
        """The process that tries it: exit code 0 where it survives, NOTHING where it does not compile."""
        path = self.folder / mutant.target
        self.before = path, path.read_text()
        if path.suffix == ".pyx" and not self.objects:
            self.compile_kernels(path.parent)
        path.write_text(mutant.source)
        if pid := os.fork():
            return pid
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            code = self.tried(path, TARGETS[mutant.target])
        finally:
            os._exit(code)

    def tried(self, path: Path, tests: tuple[str, ...]) -> int:
        import pytest

        if path.suffix == ".pyx" and not self.compiled(path):
            return NOTHING
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder / "runtime"))
        os.environ["PYTHONPATH"] = str(self.folder / "runtime")
        sys.dont_write_bytecode = True
        there = [test for test in tests if (self.folder / test).exists()]
        return 1 if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *there]) else 0

    def restore(self) -> None:
        path, text = self.before
        path.write_text(text)
        if path.suffix == ".pyx":
            self.module.unlink(missing_ok=True)
            self.module.write_bytes(self.whole)

    # As setup.py does it but for the wrapper's optimisation; the kernels are compiled once.

    def compiler(self, ext: Path) -> list[str]:
        import numpy

        macros = ["-DNPY_NO_DEPRECATED_API=NPY_1_25_API_VERSION", "-DNPY_TARGET_VERSION=NPY_1_25_API_VERSION"]
        flags = ["-fPIC", "-std=c11", "-pthread", "-ffp-contract=off", "-fno-trapping-math", "-w"]
        headers = [ext, numpy.get_include(), sysconfig.get_path("include")]
        return ["gcc", *flags, *macros, "-DPy_LIMITED_API=0x030B0000", *(f"-I{path}" for path in headers)]

    def compile_kernels(self, ext: Path) -> None:
        for kernel in sorted(ext.glob("*.c")):
            if kernel.stem not in ("packing", "reading", "files", "png"):
                self.objects.append(kernel.with_suffix(".o"))
                subprocess.run([*self.compiler(ext), "-O2", "-c", kernel, "-o", self.objects[-1]], check=True)

    def compiled(self, path: Path) -> bool:
        made, new = path.with_suffix(".c"), self.module.with_suffix(".new")
        name = ["--module-name", "organ_infer._packing"]
        cython = [sys.executable, "-m", "cython", "-3", *name, path, "-o", made]
        link = [*self.compiler(path.parent), "-O0", "-shared", made, *self.objects, "-o", new]
        if any(subprocess.run(step, cwd=path.parent).returncode for step in (cython, link)):
            return False
        new.replace(self.module)  # another file: a library that is mapped is not written over
        return True


def outcomes(mutants: list[Mutant], places: list[Place]) -> Iterator[tuple[Mutant, str]]:
    """`killed`, `survived` or `nothing` for each, as they end."""
    waiting, free = list(reversed(mutants)), list(places)
    running: dict[int, tuple[Mutant, Place, float]] = {}
    while waiting or running:
        while waiting and free:
            mutant, place = waiting.pop(), free.pop()
            running[place.start(mutant)] = mutant, place, time.monotonic()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid not in running:
            for late, (_, _, begun) in running.items():
                if time.monotonic() - begun > LIMIT:
                    os.killpg(late, signal.SIGKILL)
            time.sleep(0.05)
            continue
        mutant, place, _ = running.pop(pid)
        place.restore()
        free.append(place)
        yield mutant, {0: "survived", NOTHING: "nothing"}.get(os.waitstatus_to_exitcode(status), "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS)
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="of each target at most so many, drawn evenly"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="only show them")
    options = parser.parse_args()
    low = False
    with contextlib.ExitStack() as stack:
        places = []
        for _ in range(0 if options.list else options.jobs):
            places.append(Place(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        for name in () if options.list else PRELOADED:
            importlib.import_module(name)
        for target in options.targets:
            mutants = list((cython_mutants if target.endswith(".pyx") else python_mutants)(target))
            total = len(mutants)
            if options.sample and total > options.sample:
                mutants = random.Random(options.seed).sample(mutants, options.sample)
            mutants.sort(key=lambda mutant: mutant.line)
            if options.list:
                for mutant in mutants:
                    print(f"{target}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
                continue
            begun, counts = time.monotonic(), Counter()
            for mutant, found in outcomes(mutants, places):
                why = unseen(mutant) if found == "survived" else None
                counts["known" if why else found] += 1
                if found == "survived":
                    said = f"  {mutant.line}: {mutant.before}  ->  {mutant.after}" + (
                        f"  ({why})" if why else ""
                    )
                    print(said, flush=True)
            died, alive = counts["killed"], counts["survived"]
            share = died / max(1, died + alive)
            low = low or share < GOAL
            print(
                f"{target}: {died} of {died + alive} died ({share:.1%}), {counts['known']} known to change nothing;"
                f" {len(mutants)} of {total} mutants tried, {counts['nothing']} did not compile,"
                f" {time.monotonic() - begun:.0f} s",
                flush=True,
            )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
