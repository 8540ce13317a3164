"""Files and folders that are complete or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Lets `write` fill a new file, which then replaces `path`; a failure leaves `path` as it was."""
    place = os.path.realpath(path)
    if os.path.exists(place) and not os.path.isfile(place):  # a device or a pipe can't be replaced
        with open(place, "wb") as file:
            write(file)
        return
    folder, name = os.path.split(place)
    partial = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            write(file)
        os.replace(partial, place)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write_whole_folder(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder, which then becomes `path`; a failure leaves nothing at `path`.

    Raises:
      FileExistsError: if `path` exists and is not an empty folder.
    """
    place = Path(os.path.realpath(path))
    check_new_folder(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.parent / f".{place.name[:100]}.{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        write(partial)
        os.replace(partial, place)  # in one step; an empty folder is replaced
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raises FileExistsError if a path exists and is not an empty folder."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise FileExistsError(
            f"the folder must be new, but {os.fspath(path)} exists: remove it or choose another."
        )
