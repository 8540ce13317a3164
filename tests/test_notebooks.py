"""Every notebook runs from top to bottom, with warnings as errors."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.filterwarnings("default")  # of the client itself
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # notebooks train: their programs must be quick
    notebook = nbformat.read(path, as_version=4)
    first = "import warnings\nwarnings.simplefilter('error')"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
