"""``python -m sfplus_kernels [COMMAND]``: the commands are in ``cli``, one a file."""

import argparse
import sys

from sfplus_kernels.cli import export, forecast, memory, report

COMMANDS = {
    "report": (report.main, "versions, devices and backends of this installation (the default)"),
    "export": (export.main, "the averaged weights out of a trainer's checkpoint"),
    "forecast": (forecast.main, "the loss at a later step, from the curve of a run"),
    "memory": (memory.main, "what the optimizers keep of a model, in gigabytes"),
}


def main(arguments: list[str]) -> None:
    """Hand the arguments to the command that they name."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m sfplus_kernels",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())
        + "\n\nCOMMAND --help says more.",
    )
    parser.add_argument("command", nargs="?", default="report", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    COMMANDS[given.command][0](given.rest)


if __name__ == "__main__":
    main(sys.argv[1:])
