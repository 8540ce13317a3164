"""The results of a run on disk, site by site and window by window, so that a run that was stopped goes on.

Activations are not stored: the batches pass through the model again, which costs a forward pass and gives the same
bits, and what was solved or trained before is read. The files are small and each is written once, so they are NumPy's
and need no Orbax.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune.calibration.engine.fingerprint import DIGEST
from jaxprune.calibration.engine.results import LayerResult, WindowResult
from jaxprune.files import write_whole

_SETTINGS, _RESULT = "settings.json", "result"


class Record(NamedTuple):
    """A result: its arrays, numbers about it, and what is told of it."""

    arrays: Sequence[np.ndarray]
    facts: dict[str, Any]
    rows: Sequence[Any]


class Journal:
    """A folder with a file for each finished site and window, and in the end with one file of the whole result.

    A file is complete or not there, whenever the process is killed. One that can't be read counts as missing: its
    result is computed again.

    Args:
      folder: the folder; it is made if it is missing.
      settings: name -> text of all that decides the results.

    Raises:
      ValueError: if the folder holds other files, or results of another run.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, str]):
        self.path = Path(folder)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`checkpoint` must be a folder, but {self.path} is a file.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._rows: list[Any] = []
        file = self.path / _SETTINGS
        if file.exists():
            if any(self.path.glob("*.npz")):
                _check_same(self.path, file, settings)
        elif any(not name.name.endswith(".partial") for name in self.path.iterdir()):
            raise ValueError(
                f"`checkpoint` must be a new folder or that of an earlier run, but {self.path} has other files."
            )
        write_whole(file, lambda out: out.write(json.dumps(settings, indent=1).encode()))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._file(name).exists()

    def read(self, name: str) -> Record | None:
        """The record of this name; None if there is none."""
        file = self._file(name)
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as content:
                facts, *arrays = (content[f"arr_{i}"] for i in range(len(content.files)))
                told = json.loads(facts.tobytes())
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        rows = [(WindowResult if "before" in row else LayerResult)(**row) for row in told["rows"]]
        self._rows += rows
        return Record(arrays, told["facts"], rows)

    def write(self, name: str, record: Record) -> None:
        """Writes a record."""
        self._rows += record.rows
        self._write(name, record)

    def result(self) -> Record | None:
        """The record of the finished run; None if it is not finished."""
        return self.read(_RESULT)

    def finish(self, arrays: Sequence[np.ndarray], facts: dict[str, Any]) -> None:
        """Writes the result of the whole run with all rows, in place of the records."""
        self._write(_RESULT, Record(arrays, facts, self._rows))
        for file in self.path.glob("*.npz"):
            if file.stem != _RESULT:
                file.unlink(missing_ok=True)
        for file in self.path.glob(".*.partial"):  # of a process that was killed
            file.unlink(missing_ok=True)

    def _write(self, name: str, record: Record) -> None:
        told = {"facts": record.facts, "rows": [row._asdict() for row in record.rows]}
        facts = np.frombuffer(json.dumps(told).encode(), np.uint8)
        write_whole(self._file(name), lambda out: np.savez(out, facts, *record.arrays))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npz"


def site_name(number: int) -> str:
    """The name of the record of a site."""
    return f"site_{number:05d}"


def window_name(number: int) -> str:
    """The name of the record of a window."""
    return f"window_{number:05d}"


def _check_same(path: Path, file: Path, new: dict[str, str]) -> None:
    try:
        old = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        raise ValueError(f"`checkpoint` {path} is damaged: its {_SETTINGS} can't be read.") from None
    for name in dict.fromkeys((*new, *old)):
        was, now = str(old.get(name)), str(new.get(name))
        if was == now:
            continue
        if DIGEST.fullmatch(was) or DIGEST.fullmatch(now):
            raise ValueError(
                f"`checkpoint` {path} is that of a run with another `{name}`. Resume with the same one, or choose "
                "another folder."
            )
        raise ValueError(
            f"`checkpoint` {path} is that of a run with other settings: its `{name}` was {was}, not {now}. "
            f"Resume with the same arguments, or choose another folder."
        )
