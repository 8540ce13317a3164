"""Files that are complete or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
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
