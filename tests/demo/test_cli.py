import subprocess
import sys

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
        (["--rewind-step", "3", "--rewind", "finetune"], "finetune goes back to no step"),
        (["--output-rate", "0.1", "--scope", "global"], "--output-rate can't be used with --scope global"),
        (["--structure", "2:4"], "at --rate 0.2 take at most --rounds 3, got 14."),
        (["--resume", "--overwrite"], "--resume and --overwrite exclude each other."),
        (["--data-dir", "x"], "--data-dir goes with --data mnist"),
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


def test_a_value_of_another_type_exits_with_code_2(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["imp", "--rounds", "many"])
    assert exit.value.code == 2 and "Traceback" not in capsys.readouterr().err


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
