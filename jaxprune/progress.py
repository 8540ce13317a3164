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
def steps_bar(
    description: str, total: int, progress: bool | None, told: Callable[[], Any] | None = None
) -> Iterator[Callable[..., None]]:
    """A function to call after each step with arrays that it computes, which advances a bar on the terminal.

    A second argument is the number of steps, if there were several. `is_shown` says what `progress` means. What
    `told` returns stands above the bar, and the time and the peak of memory below it.
    """
    if not is_shown(progress):
        yield lambda arrays, steps=1: None
        return
    from rich.console import Console

    console, begin = Console(stderr=True), time.monotonic()
    if told is not None:
        console.print(f"{description}: {told()}", markup=False, highlight=False)
    last, waiting = time.monotonic(), 0
    with progress_bar(console) as bar:
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
    if told is not None:
        end = (
            f"{description}: took {duration(time.monotonic() - begin)}, the process at most {memory(_peak())}"
        )
        console.print(end, markup=False, highlight=False)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(0.27), duration(75), duration(7300)
    ('0.27 s', '75 s', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(size: float) -> str:
    """A number of bytes in words.

    >>> memory(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _peak() -> int:
    """The most bytes that the process ever had: on the device if it counts them, else in the machine's memory."""
    found = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in found:
        return found["peak_bytes_in_use"]
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
