"""examples/notebook.ipynb runs from its first cell to its last one. Needs nbclient and ipykernel (`nox -s extras`)."""

import json

import pytest
from conftest import ROOT, child_environment, needs_default

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def test_the_notebook_is_stored_without_output():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@needs_default
def test_the_notebook_runs(monkeypatch, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # the kernel imports organ_infer as this process does, and writes nothing into the user's directory
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )

    client.execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    data = [[output["data"] for output in cell.outputs if "data" in output] for cell in code]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    opened, files, listed, array, pictures, closed = data
    assert "<b>OrganClassifier</b>" in opened[0]["text/html"]
    assert len(files) == 4
    assert all('<img src="data:image/png;base64,' in each["text/html"] for each in files)
    assert listed[0]["text/plain"].startswith("[<Prediction bladder ")
    assert "'kidney-left': 0.9" in array[0]["text/plain"]
    assert len(pictures) == 2 and all("image/png" in each for each in pictures)
    assert "closed" in closed[0]["text/html"]
