"""Who may have a run's folder, what is told of a damaged one, and what of a run that stopped."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxprune
from jaxprune import cli
from jaxprune.commands.claim import claimed, resumable
from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments import tickets
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.settings import Settings

ROW = {"kept": np.arange(6), "accuracy": np.linspace(0, 1, 6)}


def line(capsys, *arguments, code=2):
    """The one line on stderr of a command that fails."""
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxprune: error: ") and err.count("\n") == 1
    return err


def interrupted(path, **changes):
    """A folder in which one training of `imp` was saved."""
    settings = Settings(out=str(path), **changes)
    with claimed(settings) as folder:
        folder.begin(settings, "00000000")
        folder.save_row("ticket", 0, ROW)
    return settings, folder


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("/dev/null/x", "a part of it is a file"),
        ("/proc/x/y", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("", "must name a folder"),
        ("a\0b", "must name a folder, got 'a\\x00b'"),
        ("a\udcffb\ud800", "can't be used"),
    ],
)
@pytest.mark.parametrize("command", ["imp", "compare"])
def test_a_folder_that_cannot_be_made_is_told_before_anything_else(
    capsys, monkeypatch, tmp_path, command, out, why
):
    monkeypatch.chdir(tmp_path)
    err = line(capsys, command, "--out", out)
    assert "--out" in err and why in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_a_lost_link_in_the_way_is_told(capsys, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name, why in (("link", "is a file"), ("file", "is a file"), ("file/x", "a part of it is a file")):
        assert why in line(capsys, "imp", "--out", str(tmp_path / name))


def test_a_disk_that_takes_nothing_is_told_and_leaves_no_folder(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("jaxprune.commands.claim._lock", full)
    with (
        pytest.warns(UserWarning, match="its file system has no locks"),
        claimed(Settings(out=str(tmp_path / "a"))),
    ):
        pass
    monkeypatch.setattr("jaxprune.commands.claim.locked", full)
    assert "can't be used: No space left on device" in line(capsys, "imp", "--out", str(tmp_path / "b" / "c"))
    assert [p.name for p in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("saved", "end"),
    [(False, "nothing was saved."), (True, "the same command with --resume continues the run.")],
)
def test_a_disk_that_is_full_later_is_one_line_that_says_whether_the_run_can_go_on(
    capsys, tmp_path, monkeypatch, saved, end
):
    def train(settings, data, folder, console):
        folder.begin(settings, data.fingerprint())
        if saved:
            folder.save_row("ticket", 0, ROW)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")

    monkeypatch.setattr(tickets, "train", train)
    out = ("imp", "--out", str(tmp_path / "out"))
    assert line(capsys, *out, code=1) == f"jaxprune: error: /full/disk: No space left on device; {end}\n"
    if saved:
        err = line(capsys, *out, "--overwrite", code=1)
        assert err.endswith("the same command with --resume instead of --overwrite continues the run.\n")
        assert line(capsys, *out, "--resume", code=1).endswith("; the same command continues the run.\n")


def test_two_runs_cannot_have_one_folder(capsys, tmp_path):
    with claimed(Settings(out=str(tmp_path))):
        for command in ("imp", "compare"):
            for more in ([], ["--overwrite"], ["--resume"]):
                err = line(capsys, command, "--out", str(tmp_path), *more)
                assert f"--out {tmp_path} is in use by another run (process {os.getpid()})" in err
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    code = (
        "import sys, time\n"
        "from jaxprune.commands.claim import claimed\n"
        "from jaxprune.experiments.settings import Settings\n"
        "with claimed(Settings(out=sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    with (
        pytest.raises(ValueError, match=f"in use by another run .process {process.pid}"),
        claimed(Settings(out=str(tmp_path))),
    ):
        pass
    process.kill()
    process.communicate()
    with claimed(Settings(out=str(tmp_path))):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_run_of_another_version_says_which_one_goes_on_with_it(capsys, tmp_path):
    interrupted(tmp_path)
    settings = tmp_path / "settings.json"
    content = json.loads(settings.read_text())
    assert content["version"] == jaxprune.__version__
    settings.write_text(json.dumps({**content, "version": "0.0.7"}))
    err = line(capsys, "imp", "--resume", "--out", str(tmp_path))
    assert (
        "was jaxprune 0.0.7, this is" in err
        and "Install that version, or start again with --overwrite" in err
    )
    del content["version"]
    settings.write_text(json.dumps(content))
    assert "was an unknown version of jaxprune" in line(capsys, "imp", "--resume", "--out", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b'{"seeds": 3', b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_damaged_settings_are_told_by_their_name(capsys, tmp_path, content):
    interrupted(tmp_path)
    (tmp_path / "settings.json").write_bytes(content)
    err = line(capsys, "imp", "--resume", "--out", str(tmp_path))
    assert f"{tmp_path / 'settings.json'} is damaged" in err and "Start again with --overwrite." in err


def test_a_damaged_or_missing_row_is_told_by_its_name(tmp_path):
    _, folder = interrupted(tmp_path)
    np.testing.assert_array_equal(folder.load_row("ticket", 0, ROW)["kept"], ROW["kept"])
    with pytest.raises(ValueError, match="rounds/ticket-001 is damaged: it is missing"):
        folder.load_row("ticket", 1, ROW)
    largest = max((tmp_path / "rounds" / "ticket-000").rglob("d/*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=f"rounds/ticket-000 is damaged: its file .*{largest.name} was changed"
    ):
        folder.load_row("ticket", 0, ROW)


def test_a_damaged_training_of_compare_is_told_by_its_name(tmp_path):
    folder = RunFolder(tmp_path)
    record = {"recipe": "gmp", "kept": [3, 4], "test_loss": [0.1, None]}
    folder.save_training("gmp-0.9.json", record)
    assert folder.load_training("gmp-0.9.json") == record
    path = tmp_path / "trainings" / "gmp-0.9.json"
    whole = path.read_text()
    for damaged in (whole[:-9], whole.replace("4", "5"), whole.replace('"kept"', '"left"'), "{}", "[]", ""):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"gmp-0\.9\.json is damaged"):
            folder.load_training("gmp-0.9.json")


def test_settings_alone_are_no_run_that_one_could_lose(tmp_path):
    settings = Settings(out=str(tmp_path))
    with claimed(settings) as folder:
        folder.begin(settings, "00000000")
    assert not resumable(settings)
    for again in (settings, dataclasses.replace(settings, resume=True)):
        with claimed(again) as folder:
            folder.begin(again, "00000000")
    settings, _ = interrupted(tmp_path)
    assert resumable(settings) and not resumable(dataclasses.replace(settings, steps=7))
    assert not resumable(CompareSettings(out=str(tmp_path)))
    with pytest.raises(ValueError, match="holds an interrupted run"), claimed(settings):
        pass


@pytest.mark.slow
def test_interrupted_before_anything_is_saved_nothing_is_promised(tmp_path):
    out = tmp_path / "out"
    lock = out / ".lock"
    command = [sys.executable, "-m", "jaxprune.cli", "imp", "--out", str(out)]
    for number, word in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (
            lock.exists() and lock.read_text()
        ):  # one that is held tells by whom
            time.sleep(0.001)
        process.send_signal(number)
        printed, told = process.communicate()
        assert (process.returncode, printed) == (128 + number, "")
        assert told == f"jaxprune: error: {word}; nothing was saved.\n"
        assert not lock.exists()


def test_interrupted_inside_another_program_it_returns(capsys, tmp_path, monkeypatch):
    def train(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tickets, "train", train)
    assert "interrupted; nothing was saved." in line(capsys, "imp", "--out", str(tmp_path / "out"), code=130)
    assert list(tmp_path.iterdir()) == []
