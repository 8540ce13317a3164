"""A folder that is written as a whole: it appears complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxprune.commands.claim import (
    LOCK,
    folder_of,
    is_locked_here,
    locked,
    make_folders,
    reason,
    remove_empty,
)

_OURS = "report.json"  # what `jaxprune.export` writes last


@contextlib.contextmanager
def new_folder(out: str, overwrite: bool) -> Iterator[Path]:
    """A place to fill, which becomes the folder `out` when the block ends without an error.

    Until then it is beside `out`, in a hidden folder with a lock that one process at a time may use, and that the
    next one to use it cleans. An old folder is replaced only if it is one of these.

    Args:
      out: what --out names.
      overwrite: whether a folder of this kind may be replaced.

    Raises:
      ValueError: if the folder exists and must not be replaced, can't be written or is in use.
    """
    path = Path(os.path.realpath(folder_of(out)))
    made: list[Path] = []
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, made)
        try:
            _check(path, out, overwrite)
            partial = _partial(path)
            make_folders(path.parent, made)
            partial.mkdir(exist_ok=True)
            stack.enter_context(locked(partial, out))
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"--out {out} can't be used: {reason(error)}.") from None
        for left in partial.iterdir():  # by a process that was killed
            if left.name != LOCK:
                shutil.rmtree(left, ignore_errors=True)
        place = partial / "new"
        place.mkdir()
        yield place
        _check(path, out, overwrite)
        old = partial / "old"
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(place, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def discard(out: str) -> None:
    """Removes what this process has written for `out`: for a process that ends inside `new_folder`."""
    with contextlib.suppress(OSError, ValueError):
        partial = _partial(Path(os.path.realpath(folder_of(out))))
        if is_locked_here(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.partial")


def _check(path: Path, out: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file.")
    found = sorted(entry.name for entry in path.iterdir())
    if not found:
        return
    if _OURS not in found:
        raise ValueError(f"--out {out} holds other files (such as {found[0]}): choose a new folder.")
    if not overwrite:
        raise ValueError(
            f"--out {out} holds an exported model: --overwrite replaces it, or choose another folder."
        )
