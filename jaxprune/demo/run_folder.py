"""The folder of a run: nothing in it is ever half written, and an interrupted run goes on from it.

settings.json is there from the start. rounds/ has the row of each finished training of `jaxprune imp`, carry/
what its next round starts from, trainings/ what each recipe of `jaxprune compare` came to; they go when
results.json, written last, says that the run is finished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from jaxprune import checkpoint
from jaxprune.params import PyTree

_SETTINGS, _RESULTS, _CHECKPOINT = "settings.json", "results.json", "checkpoint"
# In the order in which they may go: what says that others are whole goes before them.
_OURS = (_RESULTS, "carry", "rounds", "trainings", "results.csv", "plot.png", _CHECKPOINT, _SETTINGS)
_TEMPORARY = re.compile(r".*\.(partial|removed)|.*\.orbax-checkpoint-tmp.*")


class RunSettings(Protocol):
    """What the folder asks of a command's settings."""

    @property
    def out(self) -> str: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...

    def of_the_result(self) -> dict[str, Any]: ...


class RunFolder:
    """Reads and writes the folder; `open_folder` makes one."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def is_finished(self) -> bool:
        return (self.path / _RESULTS).is_file()

    def row_path(self, kind: str, round: int) -> Path:
        return self.path / "rounds" / f"{kind}-{round:03d}"

    def has_row(self, kind: str, round: int) -> bool:
        return self.row_path(kind, round).is_dir()

    def save_row(self, kind: str, round: int, row: PyTree) -> None:
        checkpoint.save(self.row_path(kind, round), row)

    def load_row(self, kind: str, round: int, like: PyTree) -> PyTree:
        return checkpoint.restore(self.row_path(kind, round), like)

    def save_carry(self, round: int, carry: PyTree) -> None:
        """Keeps the carry before `round`, which all rows before must be there for, and drops older ones."""
        checkpoint.save(self.path / "carry" / f"{round:03d}", carry)
        for old in self._carries()[:-1]:
            _remove(self.path / "carry" / f"{old:03d}")

    def next_round(self) -> int:
        """The round to go on with; 0 where no carry is kept."""
        return max(self._carries(), default=0)

    def load_carry(self, like: PyTree) -> PyTree:
        return checkpoint.restore(self.path / "carry" / f"{self.next_round():03d}", like)

    def has_training(self, name: str) -> bool:
        return (self.path / "trainings" / name).is_file()

    def save_training(self, name: str, record: dict[str, Any]) -> None:
        (self.path / "trainings").mkdir(exist_ok=True)
        self.write(f"trainings/{name}", lambda path: _write_json(path, record))

    def load_training(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / "trainings" / name).read_text())

    def save_checkpoint(self, tree: PyTree) -> None:
        """The result's parameters and masks; one that is there was left by the same run."""
        if not (self.path / _CHECKPOINT).exists():
            checkpoint.save(self.path / _CHECKPOINT, tree)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a file beside `name`, then moves it there."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        write(partial)
        os.replace(partial, path)

    def finish(self, results: dict[str, Any]) -> None:
        """Writes results.json and removes what only served to go on."""
        self.write(_RESULTS, lambda path: _write_json(path, results))
        for name in ("carry", "rounds", "trainings"):
            _remove(self.path / name)

    def results(self) -> dict[str, Any]:
        return json.loads((self.path / _RESULTS).read_text())

    def _carries(self) -> list[int]:
        folder = self.path / "carry"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(entry.name) for entry in found if entry.name.isdigit())


def open_folder(settings: RunSettings, fingerprint: str) -> RunFolder:
    """The folder `settings.out`, new or to go on with.

    Args:
      settings: of this call; `resume` and `overwrite` say what to do with a run that is there.
      fingerprint: of the data.

    Raises:
      ValueError: the folder holds a run, or something else, or the run to resume had other settings.
    """
    path = Path(settings.out)
    folder = RunFolder(path)
    wanted = {**settings.of_the_result(), "data_fingerprint": fingerprint}
    check_out(settings)
    has_run = (path / _SETTINGS).is_file()
    if has_run and settings.resume:
        _check_same(json.loads((path / _SETTINGS).read_text()), wanted)
        _clean(path)
        return folder
    if has_run and settings.overwrite:
        for name in _OURS:
            _remove(path / name)
    path.mkdir(parents=True, exist_ok=True)
    _clean(path)
    folder.write(_SETTINGS, lambda file: _write_json(file, wanted))
    return folder


def check_out(settings: RunSettings) -> None:
    """Raises ValueError where `open_folder` would, as far as it shows without the data."""
    path = Path(settings.out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out must be a folder, but {path} is a file.")
    has_run = (path / _SETTINGS).is_file()
    if not has_run:
        others = [e.name for e in path.iterdir() if not _TEMPORARY.fullmatch(e.name)] if path.is_dir() else []
        if others:
            raise ValueError(
                f"--out {path} holds other files (such as {sorted(others)[0]}): choose a new folder."
            )
        if settings.resume:
            raise ValueError(f"--resume found no run in --out {path}.")
    elif settings.resume:
        _check_same(json.loads((path / _SETTINGS).read_text()), settings.of_the_result())
    elif not settings.overwrite:
        state = "a finished" if RunFolder(path).is_finished else "an interrupted"
        goes_on = "" if state == "a finished" else "--resume goes on with it, "
        raise ValueError(
            f"--out {path} holds {state} run: {goes_on}--overwrite replaces it, or choose another folder."
        )


def _check_same(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name not in before or before[name] != value:
            if name == "data_fingerprint":
                raise ValueError("--resume needs the data of the interrupted run, but they are other images.")
            raise ValueError(
                f"--resume needs the settings of the interrupted run: --{name.replace('_', '-')} was "
                f"{before.get(name)}, now it is {value}."
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _remove(path: Path) -> None:
    """Removes a file or a folder, which is gone at once and not piece by piece."""
    if path.is_dir():
        away = path.with_name(f".{path.name}.removed")
        shutil.rmtree(away, ignore_errors=True)
        os.replace(path, away)
        shutil.rmtree(away)
    else:
        path.unlink(missing_ok=True)


def _clean(path: Path) -> None:
    """What a killed process left behind."""
    for folder in (path, path / "carry", path / "rounds", path / "trainings"):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(entry.name):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
