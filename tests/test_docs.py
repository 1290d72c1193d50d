"""The docs against the source: every error message has its entry, every link leads somewhere, the examples run."""

import ast
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, child_environment, needs_default

import organ_infer

DOCS = ROOT / "docs"
RUNTIME = ROOT / "runtime" / "organ_infer"
LOGGED = ("warning", "info", "log")


# Messages, with {} for what varies.


def template(node, names):
    """The text of an expression as far as it stands in the source; `names`: the constants."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, names) for value in values)
        case ast.FormattedValue(value=value, format_spec=None):
            return template(value, names)
        case ast.Name(id=name) if isinstance(names.get(name), str):
            return names[name]
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(comma))), args=[ast.Name(id=name)]
        ):
            return comma.join(names[name]) if isinstance(names.get(name), tuple) else "{}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, names) + template(right, names)
    return "{}"


def called(node):
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def constants():
    """Every name of the package that is a text, or several."""
    found = {}
    for path in RUNTIME.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=name)], value=ast.Constant() | ast.Tuple() as value
                ):
                    try:
                        found[name] = ast.literal_eval(value)
                    except ValueError:
                        continue
    return found


def python_messages(path, names):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in ("_url_problem", "_list_problem"):
            yield from (
                template(each.value, names)
                for each in ast.walk(node)
                if isinstance(each, ast.Return)
            )
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name, texts = called(node), [template(argument, names) for argument in node.args]
        if name == "refuse":
            yield f"must be {texts[1]}"
        elif (
            name.endswith("Error")
            or name == "error"
            or (name in LOGGED and "logger" in ast.unparse(node.func))
        ):
            yield texts[1 if name == "log" else 0]
        elif name == "_error" or (
            name == "append" and ast.unparse(node.func) == "self.problems.append"
        ):
            yield texts[-1]
        elif name == "_refuse" or (name == "Candidate" and len(texts) > 1):
            yield texts[1]


def cython_messages(path):
    source = path.read_text()
    line = re.search(r'^cdef str LINE = "(.+)"$', source, re.MULTILINE)
    for text in re.findall(
        r"raise \w+Error\(\s*(.*?)\s*\)(?: from \w+)?$", source, re.MULTILINE | re.DOTALL
    ):
        whole = "".join(re.findall(r'"([^"]*)"', text))
        if line:
            whole = whole.replace("{LINE}", line[1])
        yield re.sub(r"\{.*?\}", "{}", whole)


def messages():
    """file -> its messages; those of under two words of their own say what another error said."""
    names = constants()
    found = {
        str(path.relative_to(RUNTIME)): set(python_messages(path, names))
        for path in sorted(RUNTIME.rglob("*.py"))
    }
    found |= {
        path.name: set(cython_messages(path)) for path in sorted((ROOT / "ext").glob("*.p[xy][dx]"))
    }
    return {
        name: {
            text for text in texts if len(re.findall(r"[A-Za-z]{2,}", text.replace("{}", ""))) > 1
        }
        for name, texts in found.items()
    }


def entries():
    """The first cells of the tables in docs/reference/errors.md, `...` for what varies."""
    rows = re.findall(
        r"^\| `([^`]+)` \|", (DOCS / "reference" / "errors.md").read_text(), re.MULTILINE
    )
    return [row for row in rows if not re.fullmatch(r"\w+Error", row)]


def said(entry, text):
    pattern = ".*".join(map(re.escape, re.split(r" ?\.\.\.,? ?", entry)))
    return re.search(pattern, text) is not None


def test_every_message_has_an_entry():
    found, listed = messages(), entries()
    assert {"errors.py", "packing.pyx"} < set(found) and sum(map(len, found.values())) > 180
    without = [
        f"{name}: {text}"
        for name, texts in found.items()
        for text in sorted(texts)
        if not any(said(entry, text) for entry in listed)
    ]
    assert not without, "docs/reference/errors.md explains none of:\n" + "\n".join(without)


def test_every_entry_is_a_message():
    found, listed = {text for texts in messages().values() for text in texts}, entries()
    old = [entry for entry in listed if not any(said(entry, text) for text in found)]
    assert not old, f"docs/reference/errors.md: in no source: {old}"
    assert len(listed) == len({*listed}) or {e for e in listed if listed.count(e) > 1} == {
        "cannot be read (...)"
    }


# Pages.

PAGES = sorted(DOCS.rglob("*.md"))
SOURCES = ("runtime", "train", "export", "ext", "tests", "docs", ".ci")


def headings(page):
    """The anchors of a page's headings, as mkdocs and GitHub name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-")
        for title in titles
    }


def test_the_navigation_lists_every_page_once():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/]+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([\w./-]*)#?([\w-]*)\)", page.read_text())
    for target, anchor in links:
        other = (page.parent / target).resolve() if target else page
        assert other.is_file() and ROOT in other.parents, target
        assert not anchor or anchor in headings(other), f"{target}#{anchor}"


def source_files():
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in {".py", ".pyx", ".pyi", ".c", ".h", ".sh"}
                or path.parent.name == ".ci"
            ):
                yield path


def test_the_sources_cite_pages_that_exist():
    cited = {
        (path.name, page)
        for path in source_files()
        for page in re.findall(r"\bdocs/[\w/]+\.(?:md|png)\b", path.read_text())
    }
    assert len(cited) > 20
    assert not [(name, page) for name, page in sorted(cited) if not (ROOT / page).is_file()]


def test_the_sources_cite_contracts_by_page_not_by_number():
    number = re.compile(r"\(C\d+\)|\b(?:contracts?|from|that) C\d+\b")
    assert not [path.name for path in source_files() if number.search(path.read_text())]


def test_the_api_page_names_what_exists():
    names = re.findall(
        r"^::: ([\w.]+)$", (DOCS / "reference" / "python.md").read_text(), re.MULTILINE
    )
    assert {f"organ_infer.{name}" for name in organ_infer.__all__} - {
        "organ_infer.__version__"
    } <= {*names}
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


# Commands.

COMMANDS = [
    (page, block)
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
    for block in re.findall(r"^```(?:sh|shell|bash)\n(.+?)^```", page.read_text(), re.M | re.S)
]
# what sh does not have: braces, [[ ]], process substitution, &>, $'...', source and **
BASH = re.compile(r"\{[^{}\s]*,[^{}\s]*\}|\[\[|[<>]\(|&>|\$'|^\s*source\s|\*\*/", re.M)


@pytest.mark.parametrize(
    "line", ["a/{b,c}", "a{,.bak}", "[[ a ]]", "a <(b)", "a &> b", "a $'b'", "source a", "a/**/b"]
)
def test_what_needs_bash_is_recognized(line):
    assert BASH.search(line)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs sh")
def test_the_commands_need_no_more_than_sh():
    assert len(COMMANDS) > 20
    for page, block in COMMANDS:
        found = BASH.search(block)
        assert found is None, f"{page.name}: {found and found[0]}"
        done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, f"{page.name}: {done.stderr}"


# Figures.


def test_the_table_of_the_reference_study_is_the_one_of_the_report():
    from train.report.published import STUDY, STUDY_MEMBERS_VAL

    page = (DOCS / "results" / "reference_study.md").read_text()
    rows = re.findall(
        r"^\| (`\w+` )?\| (train|validation|test) \| ([\d. |]+) \|$", page, re.MULTILINE
    )
    shown, stage = {}, ""
    for name, split, values in rows:
        stage = name.strip("` ") or stage
        shown.setdefault(stage, {})[split.replace("validation", "val")] = tuple(
            map(float, values.split(" | "))
        )
    assert shown == STUDY
    for name, accuracy in STUDY_MEMBERS_VAL.items():
        assert f"{name.replace('resnet', 'ResNet-')} {accuracy}" in page


def test_the_published_results_are_those_of_the_report():
    from train.report.published import DATASET_TITLES, PUBLISHED

    page = (DOCS / "results" / "accuracy.md").read_text().partition("## Published results")[2]
    rows = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| Organ")
    ]
    shown = [(row[0], row[2], float(row[3])) for row in rows]
    assert shown == [
        (DATASET_TITLES[flag], result.pixels, result.accuracy)
        for flag, results in PUBLISHED.items()
        for result in results
    ]


# Programs.


def programs():
    """The Python programs of docs/guides/embedding.md, each by its heading."""
    sections = re.split(
        r"^## ", (DOCS / "guides" / "embedding.md").read_text(), flags=re.MULTILINE
    )[1:]
    return {
        section.partition("\n")[0]: block
        for section in sections
        for block in re.findall(r"^```python\n(.+?)^```", section, re.MULTILINE | re.DOTALL)
    }


SERVICES = {"asyncio and FastAPI"}
SHOWN = {
    "Threads": "22 bladder\n22 bladder\n",
    "Processes": "8\n",
    "Files in memory": "upload liver\n",
    "Notebooks": (
        "<OrganClassifier organamnist-edge_ensemble, axial, 11 classes, CPUExecutionProvider>\n"
        "[<Prediction lung-right 0.919, liver 0.078, 'examples/lung-right-1.png'>]\n"
    ),
    "A pinned model": "axial 11\nanother model\n",
}


@needs_default
@pytest.mark.parametrize("name", sorted({*programs()} - SERVICES))
def test_the_programs_run(name, tmp_path):
    (tmp_path / "program.py").write_text(programs()[name])
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=child_environment(),
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, SHOWN.get(name, "")), done.stderr


@needs_default
def test_the_asyncio_service_answers(tmp_path, monkeypatch):
    pytest.importorskip("httpx", reason="httpx is not installed")
    testing = pytest.importorskip("fastapi.testclient", reason="FastAPI is not installed")
    program = {"__name__": "service"}
    exec(compile(programs()["asyncio and FastAPI"], "service.py", "exec"), program)
    picture = (ROOT / "examples" / "liver-1.png").read_bytes()
    with testing.TestClient(program["app"]) as client:
        assert len(client.get("/health").json()["model"]) == 64
        (found,) = client.post("/", content=picture).json()
        assert found["label"] == "liver" and found["path"] == "upload"
        (failed,) = client.post("/", content=picture[:200]).json()
        assert set(failed) == {"path", "error"}
        assert client.post("/", content=bytes((16 << 20) + 1)).status_code == 413
