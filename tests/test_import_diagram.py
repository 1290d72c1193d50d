"""The imports go one way: no cycle among modules or units; the script that draws them reads every kind of import."""

import pytest

from docs import make_import_diagram as script


@pytest.fixture(scope="module")
def known():
    return script.modules()


@pytest.fixture(scope="module")
def found(known):
    return script.imports(known)


@pytest.mark.parametrize("kind", ["module", "unit"])
def test_no_cycle(kind, known, found):
    graph = {"module": script.module_graph, "unit": script.unit_graph}[kind](known, found)
    name = {"module": str, "unit": script.unit}[kind]
    cycles = [
        script.described(script.cycle_in(graph, tangle), found, name) for tangle in script.tangles(graph)
    ]
    assert not cycles, f"cycle of {kind}s:\n" + "\n\n".join(cycles)


def test_train_imports_export_imports_the_runtime_and_never_back(found):
    """export/all.py alone rebuilds networks with train."""
    back = {
        (each.source, each.target)
        for each in found
        if (each.source.split(".")[0], each.target.split(".")[0])
        in [("organ_infer", "train"), ("organ_infer", "export"), ("export", "train")]
    }
    assert {source for source, _ in back} == {"export.all"}


def tree(tmp_path, **files):
    """A made-up project: the modules of runtime/organ_infer, `images_png` for images/png.py."""
    for name in ("train", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    runtime = tmp_path / "runtime" / "organ_infer"
    for name, text in {"__init__": "", **files}.items():
        path = runtime / f"{name.replace('images_', 'images/', 1)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    known = script.modules(tmp_path)
    return known, script.imports(known)


@pytest.mark.parametrize(
    "source, text, target, lazy",
    [
        ("a", "import organ_infer.b", "organ_infer.b", False),
        ("a", "from organ_infer import b", "organ_infer.b", False),
        ("a", "from organ_infer.b import name", "organ_infer.b", False),
        ("a", "from . import b", "organ_infer.b", False),
        ("a", "from .b import name", "organ_infer.b", False),
        ("images___init__", "from ..b import name", "organ_infer.b", False),
        ("images_png", "from ..b import name", "organ_infer.b", False),
        ("images_png", "from . import name", "organ_infer.images", False),
        ("a", "if True:\n    from . import b", "organ_infer.b", False),
        ("a", "class A:\n    from . import b", "organ_infer.b", False),
        ("a", "def f():\n    from . import b", "organ_infer.b", True),
        ("a", "async def f():\n    import organ_infer.b", "organ_infer.b", True),
        ("a", "import_module('.b', __package__)", "organ_infer.b", True),
        ("a", "importlib.import_module('organ_infer.b')", "organ_infer.b", True),
        ("a", "READER = 'images.png:read'", "organ_infer.images.png", True),
        ("a", "READER = 'organ_infer.images.png:read'", "organ_infer.images.png", True),
        ("images___init__", "READER = 'png:read'", "organ_infer.images.png", True),
        ("a", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from . import b", "organ_infer.b", False),
    ],
)  # fmt: skip
def test_every_kind_of_import_is_read(source, text, target, lazy, tmp_path):
    files = {"a": "", "b": "name = 1", "images___init__": "", "images_png": "def read(): ..."} | {
        source: text
    }
    _, found = tree(tmp_path, **files)
    module = "organ_infer." + {"images___init__": "images", "images_png": "images.png"}.get(source, source)
    assert [(each.source, each.target, each.lazy) for each in found] == [(module, target, lazy)]


@pytest.mark.parametrize(
    "text",
    ["if TYPE_CHECKING:\n    from . import b", "if typing.TYPE_CHECKING:\n    import organ_infer.b", "import json", "A = 'b:other'"],
)  # fmt: skip
def test_imports_for_types_and_of_others_do_not_count(text, tmp_path):
    _, found = tree(tmp_path, a=text, b="")
    assert found == []


def test_a_cycle_is_named_with_its_imports(tmp_path):
    known, found = tree(
        tmp_path, a="\nfrom . import b", b="from . import c, d", c="def f():\n    from . import a", d=""
    )
    graph = script.module_graph(known, found)
    (tangle,) = script.tangles(graph)
    assert tangle == ["organ_infer.a", "organ_infer.b", "organ_infer.c"]
    assert script.described(script.cycle_in(graph, tangle), found).splitlines() == [
        "organ_infer.a -> organ_infer.b, line 2",
        "organ_infer.b -> organ_infer.c, line 1",
        "organ_infer.c -> organ_infer.a, line 2, lazy",
    ]
    heights = script.levels(graph)
    assert heights["organ_infer.d"] == 0
    assert {heights[name] for name in tangle} == {1}


def test_a_cycle_of_units_names_their_modules(tmp_path):
    known, found = tree(
        tmp_path, a="from .images import png", b="", images___init__="", images_png="", images_gif="from .. import a"
    )  # fmt: skip
    assert script.tangles(script.module_graph(known, found)) == []
    graph = script.unit_graph(known, found)
    (tangle,) = script.tangles(graph)
    assert script.described(script.cycle_in(graph, tangle), found, script.unit).splitlines() == [
        "organ_infer.a -> organ_infer.images (organ_infer.a -> organ_infer.images.png), line 1",
        "organ_infer.images -> organ_infer.a (organ_infer.images.gif -> organ_infer.a), line 1",
    ]


def test_levels_and_the_arrows_that_follow_from_others(tmp_path):
    known, found = tree(tmp_path, a="from . import b, c", b="from . import c", c="")
    graph = script.unit_graph(known, found)
    heights = script.levels(graph)
    assert [heights[f"organ_infer.{name}"] for name in "abc"] == [2, 1, 0]
    arrow = ("organ_infer.a", "organ_infer.c")
    assert arrow in graph.edges and graph.edges - script._needed(graph) == {arrow}


def test_the_check_fails_if_the_stored_diagram_is_stale(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "DIAGRAM", script.ROOT / "docs" / "none.svg")
    assert script.main(["--check"]) == 1
    assert "is not current; run python docs/make_import_diagram.py" in capsys.readouterr().err
    monkeypatch.setattr(script, "DIAGRAM", tmp_path / "imports.svg")
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    assert (tmp_path / "imports.svg").read_text().startswith("<svg ")
    assert "all three" in capsys.readouterr().out
