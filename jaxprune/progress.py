"""The progress bar of long runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def is_shown(progress: bool | None) -> bool:
    """Whether to show a progress bar; None if the standard error is a terminal, so in no pipe, test or notebook."""
    if progress is not None:
        return progress
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks have a field `note`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@contextlib.contextmanager
def steps_bar(description: str, total: int, progress: bool | None) -> Iterator[Callable[..., None]]:
    """A function to call after each step with arrays that it computes, which advances a bar on the terminal.

    A second argument is the number of steps, if there were several. `is_shown` says what `progress` means.
    """
    if not is_shown(progress):
        yield lambda arrays, steps=1: None
        return
    from rich.console import Console

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
