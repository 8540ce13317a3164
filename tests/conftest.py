"""The two ways in which masks are made of arrays at hand."""

import pytest


def compile_all(monkeypatch):
    """Masks of arrays at hand are made by compiled programs too, as those of an accelerator's are."""
    for module in ("jaxprune.masking.program", "jaxprune.selection.smallest"):
        monkeypatch.setattr(f"{module}.are_on_host", lambda arrays: False)


@pytest.fixture
def compiled(monkeypatch):
    compile_all(monkeypatch)


@pytest.fixture(params=["host", pytest.param("compiled", marks=pytest.mark.slow)])
def engine(request):
    """By NumPy, then by compiled programs."""
    if request.param == "compiled":
        request.getfixturevalue("compiled")


@pytest.fixture(scope="session")
def engines():
    """The same for a test that hypothesis calls many times: runs a check under both."""

    def under_both(check):
        check()
        with pytest.MonkeyPatch.context() as monkeypatch:
            compile_all(monkeypatch)
            check()

    return under_both
