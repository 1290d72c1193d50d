"""The imports of the three packages: counts, cycles, and the diagram docs/project/imports.svg.

    python docs/make_import_diagram.py            # print the counts and every cycle, write the diagram
    python docs/make_import_diagram.py --check    # exit with 1 if the stored diagram is not the current one
    python docs/make_import_diagram.py --edges    # print every import as well

All imports of the sources count: those of a module, and the lazy ones inside functions, by `import_module` with a constant
name, and by a constant "module:function" in a table. Only imports under `if TYPE_CHECKING:` do not. A unit is what stands
directly in runtime/organ_infer, train or export: a module or a subpackage. A level is the longest way down to a module that
imports nothing. Needs the standard library alone.
"""

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIAGRAM = ROOT / "docs" / "project" / "imports.svg"
PACKAGES = {"train": "train", "export": "export", "organ_infer": "runtime/organ_infer"}
REFERENCE = re.compile(r"(\w+(?:\.\w+)*):([a-zA-Z_]\w*)")

Pair = tuple[str, str]


@dataclass(frozen=True, order=True)
class Import:
    source: str
    target: str
    line: int
    lazy: bool


@dataclass
class Graph:
    """Nodes and who imports whom; `lazy` holds the edges that are never followed while a module loads."""

    nodes: set[str]
    edges: set[Pair]
    lazy: set[Pair] = field(default_factory=set)

    def targets(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for source, target in sorted(self.edges):
            found[source].append(target)
        return found


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its name. A stub stands for a compiled module."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py*")):
            if path.suffix in (".py", ".pyi"):
                parts = path.relative_to(root / folder).with_suffix("").parts
                found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(known: dict[str, Path]) -> list[Import]:
    """Every import of a known module by another."""
    found = set()
    for source, path in known.items():
        for name, line, lazy in _named(source, path, known):
            target = _closest(name, known)
            if target and target != source:
                found.add(Import(source, target, line, lazy))
    return sorted(found)


def _closest(name: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name is or is in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def _named(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """What a file imports: the dotted name, its line, and whether the import is lazy."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    top = module.partition(".")[0]

    def absolute(name: str, level: int) -> str:
        base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
        return ".".join([*base, *filter(None, [name])])

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.orelse:
                    yield from visit(child, lazy)
                return
            case ast.Import(names=names):
                for alias in names:
                    yield alias.name, node.lineno, lazy
            case ast.ImportFrom(module=name, names=names, level=level):
                for alias in names:
                    yield (
                        absolute(f"{name}.{alias.name}" if name else alias.name, level),
                        node.lineno,
                        lazy,
                    )
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
                match node.args[:1]:
                    case [ast.Constant(value=str(name))]:
                        level = len(name) - len(name.lstrip("."))
                        yield absolute(name.lstrip("."), level), node.lineno, True
            case ast.Constant(value=str(text)) if matched := REFERENCE.fullmatch(text):
                for name in (matched[1], f"{top}.{matched[1]}", f"{package}.{matched[1]}"):
                    if name in known and matched[2] in _defined(known[name]):
                        yield name, node.lineno, True
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(_parsed(path), False)


def _defined(path: Path) -> set[str]:
    """The functions and classes of a file."""
    return {
        node.name for node in _parsed(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_graph(known: dict[str, Path], found: list[Import]) -> Graph:
    return _graph(known, ((each.source, each.target, each.lazy) for each in found))


def unit_graph(known: dict[str, Path], found: list[Import]) -> Graph:
    named = ((unit(each.source), unit(each.target), each.lazy) for each in found)
    return _graph(map(unit, known), (row for row in named if row[0] != row[1]))


def _graph(nodes: Iterable[str], rows: Iterable[tuple[str, str, bool]]) -> Graph:
    listed = list(rows)
    edges = {(source, target) for source, target, _ in listed}
    eager = {(source, target) for source, target, lazy in listed if not lazy}
    return Graph(set(nodes), edges, edges - eager)


def unit(module: str) -> str:
    return ".".join(module.split(".")[:2])


def within(graph: Graph, package: str) -> Graph:
    """The part of a graph inside one package."""
    nodes = {node for node in graph.nodes if node.partition(".")[0] == package}
    edges = {edge for edge in graph.edges if nodes.issuperset(edge)}
    return Graph(nodes, edges, graph.lazy & edges)


def tangles(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other, each sorted: strongly connected components of two or more (Tarjan)."""
    targets, index, low = graph.targets(), {}, {}
    stack, found = [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in targets.get(node, ()):
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph.nodes):
        if node not in index:
            visit(node)
    return sorted(found)


def cycle_in(graph: Graph, tangle: list[str]) -> list[str]:
    """A shortest cycle of a tangle: its nodes in order, the first one again at the end."""
    targets = graph.targets()
    shortest: list[str] = []
    for start in tangle:
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            for target in targets.get(way[-1], ()):
                if target == start and (not shortest or len(way) < len(shortest) - 1):
                    shortest = [*way, start]
                if target in tangle and target not in seen:
                    seen.add(target)
                    ways.append([*way, target])
    return shortest


def described(cycle: list[str], found: list[Import], name: object = str) -> str:
    """A cycle with the place of each of its imports."""
    lines = []
    for source, target in pairwise(cycle):
        each = next(e for e in found if name(e.source) == source and name(e.target) == target)
        exact = (
            ""
            if (each.source, each.target) == (source, target)
            else f" ({each.source} -> {each.target})"
        )
        lines.append(f"{source} -> {target}{exact}, line {each.line}{', lazy' * each.lazy}")
    return "\n".join(lines)


def levels(graph: Graph) -> dict[str, int]:
    """How far each node is above one that imports nothing; the nodes of a tangle share a level."""
    group = {node: node for node in graph.nodes}
    for tangle in tangles(graph):
        group |= dict.fromkeys(tangle, tangle[0])
    below = defaultdict(set)
    for source, target in graph.edges:
        if group[source] != group[target]:
            below[group[source]].add(group[target])
    heights: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in heights:
            heights[node] = max((height(target) + 1 for target in below[node]), default=0)
        return heights[node]

    return {node: height(group[node]) for node in sorted(graph.nodes)}


# The diagram.

ROW, GAP, MARGIN, CHARACTER, BOX = 62, 14, 20, 6.7, 24
STYLE = """
  text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; }
  .title { font-weight: bold; font-size: 13px; }
  .panel { fill: #ffffff; stroke: #d0d7de; }
  .module { fill: #f6f8fa; stroke: #8c959f; }
  .package { fill: #ddf4ff; stroke: #0969da; }
  path { fill: none; stroke: #6e7781; marker-end: url(#head); }
  .lazy { stroke-dasharray: 4 3; }
  .cycle { stroke: #cf222e; stroke-width: 2; }
"""


def diagram(known: dict[str, Path], found: list[Import]) -> str:
    """The units of each package by level, as SVG."""
    whole, packages = (
        unit_graph(known, found),
        {unit(name) for name in known if name.count(".") > 1},
    )
    panels, top, width = [], MARGIN, 0.0
    for package in PACKAGES:
        body, wide, high = _panel(whole, package, packages, top)
        panels.append((top, high, body))
        width, top = max(width, wide), top + high + MARGIN
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 2 * MARGIN:.0f}" height="{top}" role="img">',
        "<title>Imports between the units of train, export and organ_infer</title>",
        "<!-- written by docs/make_import_diagram.py -->",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:#6e7781;stroke:none;marker-end:none"/></marker></defs>',
    ]
    for start, high, body in panels:
        rows.append(
            f'<rect class="panel" x="{MARGIN / 2}" y="{start}" width="{width + MARGIN:.0f}" height="{high}"/>'
        )
        rows += body
    return "\n".join([*rows, "</svg>"]) + "\n"


def _panel(
    whole: Graph, package: str, packages: set[str], top: int
) -> tuple[list[str], float, int]:
    graph = within(whole, package)
    # an empty __init__
    graph.nodes -= {package} - {node for edge in graph.edges for node in edge}
    heights, drawn = levels(graph), _needed(graph)
    highest = max(heights.values())
    others = defaultdict(set)
    for source, target in whole.edges:
        there = target.partition(".")[0]
        if source in graph.nodes and there != package:
            others[there].add(source)
    outside = "".join(f"; {len(by)} of them import {there}" for there, by in sorted(others.items()))
    title = f"{package}: {len(graph.nodes)} units, {highest + 1} levels, {len(graph.edges)} imports{outside}"
    rows = [
        [node for node in heights if heights[node] == height] for height in range(highest, -1, -1)
    ]
    place = _places(rows, graph)
    wide = max([x + _width(node) / 2 for node, x in place.items()] + [len(title) * 8.2])
    y = {node: top + 44 + (highest - heights[node]) * ROW for node in heights}
    tangled = {node: i for i, tangle in enumerate(tangles(graph)) for node in tangle}
    body = [f'<text class="title" x="{MARGIN}" y="{top + 22}">{escape(title)}</text>']
    for source, target in sorted(drawn):
        classes = ["lazy"] * ((source, target) in graph.lazy)
        if source in tangled and tangled[source] == tangled.get(target):
            classes.append("cycle")
        x1, y1, x2, y2 = place[source], y[source] + BOX, place[target], y[target]
        bend = (y2 - y1) / 2 if y2 > y1 else ROW / 2
        end = y2 if y2 > y1 else y1
        name = f' class="{" ".join(classes)}"' if classes else ""
        body.append(
            f'<path{name} d="M{x1:.0f} {y1}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {end - bend if y2 > y1 else end + bend:.0f} {x2:.0f} {end}"/>'
        )
    for node in sorted(heights):
        kind = "package" if node in packages else "module"
        left, wide_box = place[node] - _width(node) / 2, _width(node)
        body.append(
            f'<rect class="{kind}" x="{left:.0f}" y="{y[node]}" width="{wide_box:.0f}" height="{BOX}" rx="4"/>'
        )
        body.append(
            f'<text x="{place[node]:.0f}" y="{y[node] + 16}" text-anchor="middle">{escape(_label(node))}</text>'
        )
    return body, wide, 44 + (highest + 1) * ROW - (ROW - BOX) + MARGIN


def _needed(graph: Graph) -> set[Pair]:
    """The edges without those that follow from others."""
    targets, heights = graph.targets(), levels(graph)

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            for target in targets.get(left.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    left.append(target)
        return seen

    below = {node: reached(node) for node in graph.nodes}
    return {
        (source, target)
        for source, target in graph.edges
        if heights[source] == heights[target]
        or not any(
            target in below[way]
            for way in targets[source]
            if way != target and heights[way] < heights[source]
        )
    }


def _places(rows: list[list[str]], graph: Graph) -> dict[str, float]:
    """The middle of each box: rows ordered by the middle of what they are connected with, some rounds up and down."""
    near = defaultdict(list)
    for source, target in sorted(_needed(graph)):
        near[source].append(target)
        near[target].append(source)
    widest = max(sum(_width(node) + GAP for node in row) for row in rows)
    place: dict[str, float] = {}
    for number in range(24):
        for row in rows if number % 2 == 0 else rows[::-1]:
            wanted = {
                node: sum(known) / len(known)
                if (known := [place[n] for n in near[node] if n in place])
                else widest / 2
                for node in row
            }
            row.sort(key=lambda node: (wanted[node], node))
            x = MARGIN + (widest - sum(_width(node) + GAP for node in row)) / 2
            for node in row:
                place[node] = x + _width(node) / 2
                x += _width(node) + GAP
    return place


def _width(node: str) -> float:
    return len(_label(node)) * CHARACTER + 16


def _label(node: str) -> str:
    return node.partition(".")[2] or "__init__"


def report(known: dict[str, Path], found: list[Import]) -> str:
    rows = [f"{'package':<14}{'':<9}{'number':>7}{'levels':>8}{'imports':>9}{'cycles':>8}"]
    graphs = {"modules": module_graph(known, found), "units": unit_graph(known, found)}
    for package in [*PACKAGES, "all three"]:
        for kind, whole in graphs.items():
            graph = within(whole, package) if package in PACKAGES else whole
            height = max(levels(graph).values()) + 1
            numbers = (
                f"{len(graph.nodes):>7}{height:>8}{len(graph.edges):>9}{len(tangles(graph)):>8}"
            )
            rows.append(f"{package:<14}{kind:<9}{numbers}")
    for kind, graph in graphs.items():
        name = unit if kind == "units" else str
        for tangle in tangles(graph):
            rows += [
                f"\ncycle of {len(tangle)} {kind}: {', '.join(tangle)}",
                described(cycle_in(graph, tangle), found, name),
            ]
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if the stored diagram is not the current one",
    )
    parser.add_argument("--edges", action="store_true", help="print every import")
    options = parser.parse_args(arguments)
    known = modules()
    found = imports(known)
    drawn = diagram(known, found)
    if options.check:
        if DIAGRAM.is_file() and DIAGRAM.read_text(encoding="utf-8") == drawn:
            return 0
        print(
            f"{DIAGRAM.relative_to(ROOT)} is not current; run python docs/make_import_diagram.py",
            file=sys.stderr,
        )
        return 1
    print(report(known, found))
    if options.edges:
        for each in found:
            print(f"{each.source} -> {each.target}, line {each.line}{', lazy' * each.lazy}")
    DIAGRAM.parent.mkdir(exist_ok=True)
    DIAGRAM.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
