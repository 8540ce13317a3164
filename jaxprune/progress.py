"""The progress bar of long runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks have a field `note`."""
    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextlib.contextmanager
def steps_bar(description: str, total: int, shown: bool) -> Iterator[Callable[..., None]]:
    """A function to call after each step with arrays that it computes, which advances a bar on the terminal.

    A second argument is the number of steps, if there were several.
    """
    if not shown:
        yield lambda arrays, steps=1: None
        return
    last, waiting = time.monotonic(), 0
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(arrays: Any, steps: int = 1) -> None:
            nonlocal last, waiting
            waiting += steps
            if time.monotonic() - last > 0.2:
                jax.block_until_ready(arrays)  # steps run after the host has asked for them
                bar.advance(task, waiting)
                last, waiting = time.monotonic(), 0

        yield advance
        bar.advance(task, waiting)
