"""The progress bar: shown on a terminal unless the caller says otherwise."""

import io
import sys

import pytest
from one_weight import draw

import jaxprune as jp
from jaxprune.progress import is_shown, steps_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal(), None])
def test_a_bar_is_shown_on_a_terminal_or_as_the_caller_says(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert is_shown(None) == isinstance(stream, Terminal)
    assert is_shown(True) and not is_shown(False)
    if stream is not None:
        stream.close()
        assert not is_shown(None) or isinstance(stream, Terminal)


def test_the_bar_counts_all_steps_on_the_standard_error(capsys):
    with steps_bar("stepping", 4, True) as advance:
        for _ in range(2):
            advance((), 2)
    out, err = capsys.readouterr()
    assert not out and "stepping" in err and "4/4" in err


def test_calibration_shows_a_bar_only_if_asked_or_on_a_terminal(capsys):
    params, x = {"w": draw(0, 4, 2)}, draw(1, 8, 4)
    fn = lambda params, x: x @ params["w"]  # noqa: E731
    jp.calibrate(fn, params, [x])
    assert capsys.readouterr() == ("", "")
    jp.calibrate(fn, params, [x], progress=True)
    out, err = capsys.readouterr()
    assert not out and "calibrate" in err and "1/1" in err
