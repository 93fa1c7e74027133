"""Every command line says how it is used, refuses what it does not know, and names what is missing."""

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from support import ROOT

COMMANDS = [
    "-m sfplus_kernels",
    "-m bench",
    "-m bench.report",
    "-m bench.report.readme",
    "tools/test_integrations.py",
    "tools/test_wheel.py",
    "tools/train_tiny.py",
    "examples/digits.py",
    "examples/train_lm.py",
    "examples/anytime.py",
    "examples/step_sizes.py",
    "examples/state_formats.py",
    "tests/checkpoints/saved_states.py",
]


class Done(NamedTuple):
    code: int
    output: str  # and what went to stderr


def run(command: str, *arguments: str, without: Sequence[str] = ()) -> Done:
    """``python COMMAND ARGUMENTS`` in a fork of this process, since most of the time goes to importing torch.

    Args:
        without: packages that cannot be found.
    """
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not pytest's
                execute(command, arguments, without)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:  # never on to what the parent does
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return Done(os.waitstatus_to_exitcode(status), file.read().decode())


def execute(command: str, arguments: Sequence[str], without: Sequence[str]) -> None:
    os.chdir(ROOT)
    os.environ["COLUMNS"] = "120"
    warnings.simplefilter("ignore")  # that the module was imported before
    own = (
        "bench",
        "examples",
        "extras",
        "digits",
        "train_lm",
        "anytime",
        "step_sizes",
        "state_formats",
        "lm",
        *without,
    )
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(without))  # None: cannot be imported
    sys.argv = [command, *arguments]
    if command.startswith("-m "):
        sys.path.insert(0, str(ROOT))
        runpy.run_module(command.removeprefix("-m "), run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str((ROOT / command).parent))
        runpy.run_path(command, run_name="__main__")


def changes() -> str:
    """What differs from the last commit, where git is at hand."""
    command = ["git", "-C", str(ROOT), "status", "--short"]
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_helps_and_what_is_unknown_is_refused(command: str) -> None:
    before = changes()
    code, output = run(command, "--help")
    assert code == 0, output
    assert "usage" in output.lower()
    code, output = run(command, "--no-such-option")
    assert code == 2, output
    assert "usage" in output.lower()
    assert "Traceback" not in output
    assert changes() == before


def test_a_folder_without_results() -> None:
    code, output = run("-m bench.report", "no-such-folder")
    assert code == 2
    assert "there is no no-such-folder/results.json" in output


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        *((command, "examples") for command in COMMANDS if "examples" in command),
        ("-m bench", "bench"),
    ],
)
def test_a_missing_extra_is_answered_with_the_command(command: str, extra: str) -> None:
    code, output = run(command, "--help", without=("rich", "typer"))
    assert code == 1
    assert f"need rich, typer, not installed here: pip install '.[{extra}]'" in output
    assert "Traceback" not in output
