import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxprune import cli


def errors(capsys, *arguments):
    code = cli.main(["imp", *arguments])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxprune: error: ") and err.count("\n") == 1
    return code, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0."),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--steps", "-5"], "--steps must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--rate", "20"], "--rate must be between 0 and 1, got 20. It is a fraction: 20 % is 0.2."),
        (["--rate", "nan"], "--rate must be between 0 and 1"),
        (["--output-rate", "0"], "--output-rate must be between 0 and 1"),
        (["--learning-rate", "inf"], "--learning-rate must be a positive number"),
        (["--every", "401"], "--every must be at most --steps 400, got 401."),
        (["--every", "0"], "--every must be at least 1"),
        (["--rewind-step", "400"], "--rewind-step must be below --steps 400"),
        (["--rounds", "1000000000"], "--rounds must be at most 1000, got 1000000000."),
        (["--rounds", "9" * 400], "--rounds must be at most 1000, got a number of 400 digits."),
        (["--seeds", "1000000000"], "--seeds must be at most 1000"),
        (["--seed", "4294967296"], "--seed must be at most 4294967295"),
        (["--steps", "10000000000"], "--steps must be at most 10000000, got"),
        (
            ["--steps", "1000000", "--every", "1"],
            "--every 1 makes 1000000 evaluations per round: with --steps",
        ),
        (
            ["--batch-size", "1079"],
            "--batch-size must be at most 1078, the number of training images, got 1079.",
        ),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1."),
        (["--learning-rate", "1e300"], "--learning-rate must be in the range of float32, got 1e+300."),
        (["--learning-rate", "-1"], "--learning-rate must be a positive number, got -1."),
        (["--learning-rate", "nan"], "--learning-rate must be a positive number, got nan."),
        (["--rate", "-inf"], "--rate must be between 0 and 1, got -inf."),
        (["--rewind-step", "3", "--rewind", "finetune"], "finetune does not return to a step"),
        (["--output-rate", "0.1", "--scope", "global"], "--output-rate can't be used with --scope global"),
        (["--structure", "2:4"], "with --rate 0.2, --rounds must be at most 3, got 14."),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other."),
        (["--data-dir", "x"], "--data-dir is for --data mnist only"),
        (["--data", "mnist"], "--data mnist needs --data-dir"),
        (["--data", "mnist", "--data-dir", "nowhere"], "lacks train-images-idx3-ubyte.gz"),
        (["--resume", "--out", "nowhere"], "--resume found no run in --out nowhere."),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, err = errors(capsys, *arguments)
    assert code == 2 and message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["imp", "--rounds", "many"],
            "Error parsing --rounds: invalid literal for int() with base 10: 'many'",
        ),
        (["imp", "--rounds", "1e9"], "Error parsing --rounds"),
        (["imp", "--nothing", "3"], "Unrecognized options: --nothing, 3"),
        (["imp", "--data", "cifar"], "invalid choice 'cifar' for argument '--data'"),
        (["compare", "--recipes", "none"], "invalid choice 'none' for argument '--recipes'"),
        (["compare", "--sparsities", "0.9", "x"], "Error parsing --sparsities"),
        ([], "Expected one of {inspect, shrink, export, imp, compare, claims}"),
        (["nothing"], "Unrecognized options: nothing"),
    ],
)
def test_options_that_cannot_be_parsed_are_one_line_and_exit_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == ""
    assert err.startswith("jaxprune: error: ") and err.count("\n") == 1 and message in err


def test_version_names_those_of_what_it_stands_on(capsys):
    import jax

    import jaxprune

    assert cli.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith(f"jaxprune {jaxprune.__version__} (jax {jax.__version__}, ") and out.count("\n") == 1
    )
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == jaxprune.__version__


def test_nobody_reads_the_output():
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "jaxprune.cli", "--help"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_message_is_one_line_whatever_it_names(capsys, tmp_path):
    folder = str(tmp_path / "run")  # the usual one may hold a run of whoever tests
    assert cli.main(["imp", "--data", "mnist", "--data-dir", "a\nb\x1b[31m", "--out", folder]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and "a b" in err


def test_out_of_memory_says_what_to_make_smaller(capsys, monkeypatch):
    def exhausted(_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand more")

    monkeypatch.setattr(cli, "_imp", exhausted)
    assert cli.main(["imp", "--out", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        "jaxprune: error: out of memory: use fewer --seeds or a smaller --batch-size; nothing was saved.\n"
    )


def test_help_names_the_files_of_mnist_and_where_to_get_them(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["imp", "--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert (
        "train-images-idx3-ubyte.gz" in out and "https://storage.googleapis.com/cvdf-datasets/mnist/" in out
    )


def test_a_foreign_folder_and_a_file_are_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"], ["--resume"]):
        code, err = errors(capsys, "--out", str(tmp_path), *more)
        assert code == 2 and "holds other files (such as thesis.tex)" in err
    code, err = errors(capsys, "--out", str(tmp_path / "thesis.tex"), "--overwrite")
    assert code == 2 and "is a file" in err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_without_the_demo_extra_it_says_what_to_install():
    code = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('tyro', 'sklearn') else find(name, *a)\n"
        "from jaxprune.cli import main\n"
        "sys.exit(main(['imp']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "jaxprune: error: the command line needs the `demo` extra (missing: tyro, scikit-learn): "
        "pip install 'jaxprune[demo]'.\n"
    )
