"""Whether a run may use its folder: it is writable, it holds no other files, and no other process uses it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxprune.commands.run_folder import RunFolder, RunSettings, is_leftover

LOCK = ".lock"
_OWNER = f"{os.getpid()}\n"


@contextlib.contextmanager
def claimed(settings: RunSettings) -> Iterator[RunFolder]:
    """The folder `settings.out`, which no other run can use until the block ends.

    A folder that is made here is removed again if the block leaves it empty. A finished run that is only shown
    needs no lock and may be on a read-only disk.

    Raises:
      ValueError: if the folder can't be made or written, is in use, or holds a run or files that `settings` do
        not allow.
    """
    path = folder_of(settings.out)
    folder = RunFolder(path)
    made: list[Path] = []
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, made)
        try:
            if not (settings.resume and folder.is_finished):
                _check_content(path)
                make_folders(path, made)
                stack.enter_context(locked(path, path))
        except (OSError, UnicodeError) as error:
            raise ValueError(f"--out {path} can't be used: {reason(error)}.") from None
        _check_run(folder, settings)
        yield folder


def resumable(settings: RunSettings) -> bool:
    """Whether a run with these settings has saved results or progress."""
    try:
        folder = RunFolder(folder_of(settings.out))
        if not (folder.is_finished or folder.has_progress):
            return False
        folder.check_same(settings)
    except (ValueError, OSError):
        return False
    return True


def unlock(settings: RunSettings) -> None:
    """Removes the lock of this process, if it holds one: for a process that ends inside `claimed`."""
    with contextlib.suppress(OSError, ValueError):
        if is_locked_here(Path(settings.out)):
            (Path(settings.out) / LOCK).unlink()


def is_locked_here(path: Path) -> bool:
    """Whether this process holds the lock of a folder."""
    return (path / LOCK).is_file() and (path / LOCK).read_text() == _OWNER


def folder_of(out: str) -> Path:
    """The folder that --out names; raises ValueError if it can be no folder's name."""
    if not out or "\0" in out:
        raise ValueError(f"--out must name a folder, got {out!r}.")
    return Path(out)


def _check_content(path: Path) -> None:
    if not path.is_dir():
        if os.path.lexists(path):
            raise ValueError(f"--out must be a folder, but {path} is a file.")
        return
    if not RunFolder(path).has_settings:
        others = [e.name for e in path.iterdir() if not (is_leftover(e.name) or e.name == LOCK)]
        if others:
            raise ValueError(f"--out {path} holds other files (such as {min(others)}): choose a new folder.")


def _check_run(folder: RunFolder, settings: RunSettings) -> None:
    """Raises ValueError if `resume` and `overwrite` do not fit the run in the folder."""
    if settings.resume:
        if not folder.has_settings:
            raise ValueError(f"--resume found no run in --out {folder.path}.")
        folder.check_same(settings)
    elif not settings.overwrite and (folder.is_finished or folder.has_progress):
        state = "a finished run" if folder.is_finished else "an interrupted run"
        resume = "" if folder.is_finished else "--resume continues it, "
        raise ValueError(
            f"--out {folder.path} holds {state}: {resume}--overwrite replaces it, or choose another folder."
        )


def make_folders(path: Path, made: list[Path]) -> None:
    """Makes the folder and its parents, and appends those that were missing to `made`, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        made.append(folder)


def remove_empty(made: list[Path]) -> None:
    """Removes those of the folders that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in reversed(made):
            folder.rmdir()


@contextlib.contextmanager
def locked(path: Path, shown: object) -> Iterator[None]:
    """Holds the lock of the folder, which the operating system releases however the process ends.

    Args:
      path: the folder.
      shown: how messages name it.

    Raises:
      ValueError: if another process holds the lock.
    """
    lock = path / LOCK
    with open(lock, "a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise _in_use(shown, file) from None
        except OSError as error:
            warnings.warn(
                f"--out {shown}: its file system has no locks ({reason(error)}); use this folder for one run only.",
                stacklevel=2,
            )
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
            raise _in_use(
                shown, file
            )  # the lock belonged to another run, which has just ended: a third may have locked the folder
        try:
            # Not only for people to read: on a full disk this fails before anything is trained.
            file.seek(0)
            file.truncate()
            file.write(_OWNER)
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def _in_use(shown: object, lock: IO[str]) -> ValueError:
    lock.seek(0)
    process = lock.read(20).strip()
    return ValueError(
        f"--out {shown} is in use by another run{f' (process {process})' if process else ''}: "
        "wait for its end, or choose another folder."
    )


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def reason(error: OSError | UnicodeError) -> str:
    """Why a folder can't be used, in a few words."""
    if isinstance(error, OSError) and error.errno == errno.ENOTDIR:
        return "a part of it is a file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
