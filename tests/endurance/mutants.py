"""Makes mutants: copies of a file in which one thing is changed.

Python files are changed by their syntax tree: comparisons, `and`/`or`/`not`, arithmetic, numbers, True/False/None,
conditions, what is returned, and whole `raise` and call statements. Texts, types and what is between quotes are not.
`packing.pyx` is changed by its text.
"""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.endurance.equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    target: str  # the file, from the root
    line: int
    end: int  # the last line of the statement around it, without a body of its own
    before: str
    after: str
    source: str  # all of the changed file

    @property
    def equivalent(self) -> str | None:
        """Why nothing can be seen of it, if that is known."""
        if self.before.endswith("except -1:") and self.after == self.before.replace("-1:", "-2:"):
            return "another number stands for an error"
        if self.before == "if TYPE_CHECKING:":
            return "an import for types alone"
        return EQUIVALENT.get(self.target, {}).get((self.before, self.after))


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
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
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
        case ast.If(test=test, body=body, orelse=orelse) if not isinstance(
            test, ast.Compare | ast.BoolOp
        ):
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


def mutants_of(target: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    make = cython_mutants if target.endswith(".pyx") else python_mutants
    return sorted(make(target), key=lambda mutant: mutant.line)


def python_mutants(target: str) -> Iterator[Mutant]:
    source = (ROOT / target).read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    for parent, field, i, child, statement in list(_walk(tree, None)):
        for other in changes(child):
            ast.copy_location(other, child)
            put(parent, field, i, other)
            changed = ast.unparse(ast.fix_missing_locations(tree))
            put(parent, field, i, child)
            after = ast.unparse(other).splitlines()[0]
            first, last = _extent(statement)
            yield Mutant(target, first, last, lines[child.lineno - 1].strip(), after, changed)


def _walk(
    parent: ast.AST, statement: ast.stmt | None
) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, ast.stmt]]:
    """Every node that may be changed: its parent, where it stands in it, and the statement it belongs to."""
    for field, value in ast.iter_fields(parent):
        if is_type(parent, field):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                around = child if isinstance(child, ast.stmt) else statement
                if around is not None:
                    yield parent, field, i if isinstance(value, list) else None, child, around
                yield from _walk(child, around)


def _extent(statement: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, of one with a body only its head."""
    body = getattr(statement, "body", None)
    last = statement.end_lineno or statement.lineno
    return statement.lineno, max(statement.lineno, body[0].lineno - 1) if body else last


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
                yield Mutant(target, i + 1, i + 1, line.strip(), changed.strip(), source)
