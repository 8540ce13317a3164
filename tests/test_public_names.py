"""What `import jaxprune` offers, and that it loads nothing before it is asked for."""

import importlib
import inspect
import pkgutil
import py_compile
import subprocess
import sys
import types

import pytest

import jaxprune as jp


def test_every_public_name_is_there_and_listed():
    assert len(jp.__all__) > 40
    for name in jp.__all__:
        assert getattr(jp, name) is getattr(importlib.import_module("jaxprune.public"), name)
        assert name in dir(jp)


PUBLIC = (
    "allocate", "calibration", "checkpoint", "plots", "recipes", "schedules", "scores", "sparse_training",
    "statistics", "structures", "surgery", "transforms",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_public_module_shows_is_what_it_offers(name):
    module = importlib.import_module(f"jaxprune.{name}")
    assert dir(module) == sorted(module.__all__) and len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        offered = getattr(module, public)
        assert not public.startswith("_") and not isinstance(offered, types.ModuleType)
        if inspect.isclass(offered) or inspect.isfunction(offered):
            assert offered.__module__.startswith("jaxprune"), public


def test_the_package_shows_what_it_offers_and_its_public_modules():
    assert dir(jp) == sorted({*jp.__all__, "__version__", "checkpoint", "plots"})
    assert {name for name in PUBLIC if name in dir(jp)} >= {"schedules", "surgery", "scores", "allocate"}


def test_no_public_name_is_lost():
    """Names that users build on; an old spelling that only warns still counts."""
    assert set(jp.__all__) >= {
        "ADMM", "Block", "Channels", "Finetune", "Layers", "MaskOnly", "NM", "Plan", "Reinitialize", "Rewind",
        "RewindLearningRate", "SparseGPT", "Unstructured", "allocate", "apply_masks", "calibrate", "find_groups",
        "get_masks", "gradual", "imp", "make_masks", "masked", "plan_removal", "prunable", "reconstruct",
        "replace_masks", "schedules", "scores", "sensitivity", "sparsity", "summary", "swap_refine",
    }  # fmt: skip


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


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys\n"
        "import jaxprune as jp\n"
        "assert jp.__all__ and dir(jp) and not {'jax', 'flax', 'optax', 'jaxprune.public'} & set(sys.modules)\n"
        "import flax, optax\n"
        "there = set(sys.modules)\n"
        "jp.masked, jp.schedules\n"
        "assert not {'jaxprune.surgery', 'jaxprune.calibration', 'jaxprune.recipes'} & set(sys.modules)\n"
        "for name in set(jp.__all__) - {'nnx_state'}:\n"
        "    getattr(jp, name)\n"
        "for name in ('flax.nnx', 'rich', 'matplotlib', 'orbax', 'jax2onnx', 'onnxruntime', 'tyro', 'sklearn'):\n"
        "    assert name in there or name not in sys.modules, name\n"
        "jp.nnx_state, jp.surgery.shrink_module\n"
        "assert 'flax.nnx' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_without_its_source_offers_the_same(tmp_path, monkeypatch):
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled/__init__.py").write_text(
        "from jaxprune import lazy\nlazy.attach(__name__, 'compiled.all')\n"
    )
    (tmp_path / "compiled/all.py").write_text("from math import pi as number, tau\n__all__ = ['number']\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (True, False):
        package = importlib.import_module("compiled")
        assert package.number == 3.141592653589793 and package.__all__ == ["number"]
        with pytest.raises(AttributeError, match="has no attribute 'tau'"):
            _ = package.tau
        if source:
            py_compile.compile(str(tmp_path / "compiled/all.py"), str(tmp_path / "compiled/all.pyc"))
            (tmp_path / "compiled/all.py").unlink()
        for name in ("compiled", "compiled.all"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()


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
