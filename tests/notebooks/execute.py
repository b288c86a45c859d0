"""Runs a notebook from a clean kernel, and leaves in its outputs what does not depend on where it ran."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
_SECONDS = 300  # a cell may take
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "2",  # what the default policy expects of a call depends on them
    # tqdm's bars as widgets are for people who look at a notebook, and need a package of their own.
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def execute(path: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh run, in its own folder, on the checkout's relay_hf.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message has its source and the traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # where one ends and the next begins hangs on when they were flushed
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | _ENVIRONMENT)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    return notebook


def write(path: Path) -> None:
    """Execute a notebook and write its outputs into it."""
    nbformat.write(execute(path), path)
