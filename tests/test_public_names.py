"""What `import jaxprune` offers, and that it loads nothing before it is asked for."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import jaxprune as jp


def test_every_public_name_is_there_and_listed():
    assert len(jp.__all__) > 40
    for name in jp.__all__:
        assert getattr(jp, name) is getattr(importlib.import_module("jaxprune.public"), name)
        assert name in dir(jp)


def test_no_module_is_hidden_by_a_function_of_its_name():
    for found in pkgutil.walk_packages(jp.__path__, "jaxprune."):
        module = importlib.import_module(found.name)
        package, _, name = found.name.rpartition(".")
        assert getattr(sys.modules[package], name) is module, found.name


def test_submodules_are_found_as_before_and_other_names_are_an_error():
    assert jp.params is sys.modules["jaxprune.params"]
    for name in ("nothing_of_the_kind", "__nothing__"):
        with pytest.raises(AttributeError, match=f"module 'jaxprune' has no attribute '{name}'"):
            getattr(jp, name)


def test_the_command_line_tells_mistakes_without_importing_jax():
    code = (
        "import sys\n"
        "import jaxprune\n"
        "from jaxprune.cli import main\n"
        "assert main(['imp', '--rounds', '0']) == main(['compare', '--sparsities', '2']) == 2\n"
        "assert main(['imp', '--out', '/dev/null/x']) == 2\n"
        "assert main(['--version']) == 0\n"
        "assert not {'jax', 'flax', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "import jaxprune.params\n"
        "assert callable(jaxprune.sensitivity)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("jaxprune: error: ") == done.stderr.count("\n") == 3
