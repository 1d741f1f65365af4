"""Test the console script: commands by name, unknown words, and completion in a real shell."""

import importlib
import inspect
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

from segnet_jax import __main__ as script
from segnet_jax import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]


def segnet(*words, **environment):
    command = [sys.executable, "-m", "segnet_jax", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]], ids=str)
def test_alone_or_requested_help_it_lists_the_commands_one_per_line(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    script.main(words)
    lines = capsys.readouterr().out.splitlines()
    for name in script.commands():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line) < 100 and len(line.split()) > 2
    assert {"train", "evaluate", "predict", "prepare", "benchmark"} <= script.commands().keys()


@pytest.mark.parametrize("called", ["segnet", "python -m segnet_jax"])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_overview_fits_the_width_and_names_the_script_as_it_was_called(columns, called):
    text = script.overview(called, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text.startswith(f"usage: {called} COMMAND") and f"{called} train --protocol demo" in text


def test_jax_is_not_imported_before_the_command_is_known():
    code = (
        "import sys\nfrom segnet_jax.__main__ import main\n"
        "for words in ([], ['--version'], ['trian']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "heavy = {'jax', 'numpy', 'tyro', 'flax', 'orbax', 'tensorflow', 'matplotlib', 'PIL'}\n"
        "print('imported:', sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("name", script.commands())
def test_each_command_is_a_module_whose_main_takes_nothing(name):
    main = importlib.import_module(f"segnet_jax.{name}").main
    assert not [each for each in inspect.signature(main).parameters.values() if each.default is each.empty]


def test_no_command_is_left_out():
    """Check that each module that ends with `run_command` is a command of the script."""
    modules = [*(ROOT / "segnet_jax").glob("*.py"), *(ROOT / "segnet_jax").glob("*/__main__.py")]
    commands = [path for path in modules if "\n    run_command(main)" in path.read_text()]
    run = {path.parent.name if path.stem == "__main__" else path.stem for path in commands}
    assert run == script.commands().keys()


def test_the_installed_script_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["segnet"].partition(":")
    assert getattr(importlib.import_module(module), function) is script.main


def test_a_command_gets_its_own_flags_and_exit_code():
    done = segnet("evaluate", "no/run", "--split", "val")
    assert (done.returncode, done.stderr) == (2, "error: no run no/run: there is no such folder\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; nearest: train"),
        (["xyz"], "unknown command 'xyz'; commands: train, "),
        (["../train"], "unknown command '../train'"),
        (["errors"], "unknown command 'errors'"),  # a module that is not a command
        (["--protocol", "demo"], "flags follow the command: segnet train --protocol"),
        (["a\nb"], r"unknown command 'a\nb'"),
        (["completion"], "takes one argument, the shell: bash or zsh"),
        (["completion", "fish"], "takes one argument, the shell: bash or zsh"),
    ],
    ids=str,
)
def test_an_unknown_word_is_reported_in_one_line_with_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        script.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and line.startswith("error: ") and message in line


def test_the_version_is_reported(capsys):
    script.main(["--version"])
    assert capsys.readouterr().out == f"segnet_jax {__version__}\n"


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Return a function that completes words as bash does after Tab: from the script's candidates or with files."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("completion")
    done = segnet("completion", "bash")
    assert done.returncode == 0, done.stderr
    (folder / "segnet.bash").write_text(done.stdout)

    def complete(*words):
        code = (
            'source ./segnet.bash; spec=($(complete -p segnet)); function=""\n'
            "for ((i = 0; i < ${#spec[@]}; i++)); do [[ ${spec[i]} == -F ]] && function=${spec[i+1]}; done\n"
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $function\n'
            'printf "%s\\n" "${COMPREPLY[@]}"; complete -p segnet >&2'
        )
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "--norc", "-c", code, "bash", "segnet", *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PATH": path},
            check=True,
        )
        assert "-o default" in done.stderr  # files, where the answer is empty
        return done.stdout.split()

    complete.folder = folder
    return complete


@pytest.mark.slow
def test_bash_completes_commands_flags_and_choices(completed):
    assert set(completed("")) == script.commands().keys()
    assert completed("ev") == ["evaluate"]
    assert completed("predict", "runs/x", "--ti") == ["--tile"]
    assert completed("train", "--learning") == ["--learning-rate"]
    assert set(completed("evaluate", "runs/x", "--split", "")) == {"train", "val", "test"}


def test_bash_completes_protocols_runs_and_the_subcommands_of_portability(completed):
    assert completed("train", "--protocol", "camvid-") == ["camvid-matlab-2018", "camvid-strong", "camvid-tutorial"]
    assert completed("check", "--fit", "") == ["stretch", "letterbox", "crop"]
    assert completed("train", "--data", "") == ["camvid", "synthetic"]
    assert completed("export", "runs/x", "--format", "onnx", "s") == ["stablehlo", "safetensors", "saved-model"]
    assert completed("portability", "") == ["lower", "compile", "measure", "report"]
    assert completed("portability", "lower", "--platf") == ["--platforms"]
    assert completed("check", "--js") == ["--json"] and completed("train", "--conf") == ["--config"]
    folder = completed.folder
    for name, is_run in (("demo-1", True), ("demo-2", True), ("other", False)):
        (folder / "runs" / name).mkdir(parents=True)
        if is_run:
            (folder / "runs" / name / "config.toml").touch()
    assert completed("predict", "") == ["runs/demo-1", "runs/demo-2"]
    assert completed("predict", "runs/demo-1", "runs/") == []  # images, of any folder
    assert completed("report", "runs/demo-1", "") == ["runs/demo-1", "runs/demo-2"]
    assert completed("train", "--resume", "--run", "runs/demo-2") == ["runs/demo-2"]
    assert completed("train", "--init", "r") == ["runs/demo-1", "runs/demo-2"]
    shutil.rmtree(folder / "runs")


def test_bash_completes_files_where_a_path_is_expected(completed):
    for words in (["evaluate", ""], ["predict", "runs/x", "photos/"], ["train", "--data", "Cam"]):
        assert completed(*words) == []


@pytest.mark.slow
def test_zsh_gets_a_script_of_the_same_commands():
    done = segnet("completion", "zsh")
    assert done.returncode == 0 and done.stdout.startswith("#compdef segnet")
    assert all(name in done.stdout for name in script.commands())
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=done.stdout, text=True, check=True)
