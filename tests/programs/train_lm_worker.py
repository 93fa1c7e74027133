"""What each process of the tests of ``--parallel`` does.

train_lm_worker.py RESULTS COMMANDS: the runs of examples/train_lm.py in a file of JSON, one after the other;
    each is a list of arguments, perhaps after "ctrl-c", for a run that one process is told to stop. torchrun
    starts the processes.
train_lm_worker.py kill COMMANDS: runs of two processes, which this one starts, that do not survive their
    second checkpoint; by where they die. Prints the exit codes.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lm import data, files, run
from support.ranks import fork
from torch.distributed.checkpoint import FileSystemWriter
from train_lm_runs import app, invoke

STOPS_AT = 10  # two steps behind a checkpoint

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def run_all(commands: list[list[str]]) -> list[dict[str, Any]]:
    """Exit codes, outputs, and how many sequences this process took at a time."""
    (store, *_) = next(dist.rendezvous("env://"))
    join = dist.init_process_group
    mean_loss, read = run.mean_loss, data.Corpus.load()
    sequences = set()

    def counted_loss(model: Any, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sequences.add(len(tokens))
        return mean_loss(model, tokens, targets)

    results = []
    for number, command in enumerate(commands):
        # torchrun's store is for one group; what an earlier one left in it would be taken for the next one's
        own = dist.PrefixStore(str(number), store)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                dist,
                "init_process_group",
                lambda backend, own=own: join(backend, store=own, rank=RANK, world_size=WORLD),
            )
            patch.setattr(data.Corpus, "load", lambda: read)
            patch.setattr(run, "mean_loss", counted_loss)
            if command[0] == "ctrl-c":
                interrupt_last_process(patch)
                command = command[1:]
            sequences.clear()
            code, output = invoke(*command)
        results.append({"code": code, "output": output, "sequences": sorted(sequences)})
    return results


def interrupt_last_process(patch: pytest.MonkeyPatch) -> None:
    """In the run of its last optimizer; torchrun would tell all, but not all in the same step."""
    step = run.Trainer._step

    def step_and_interrupt(self: run.Trainer) -> None:
        step(self)
        if (
            RANK == WORLD - 1
            and self.done == STOPS_AT
            and self.name == self.settings.optimizers[-1]
        ):
            signal.raise_signal(signal.SIGINT)

    patch.setattr(run.Trainer, "_step", step_and_interrupt)


def kill_at_second_call(owner: Any, name: str) -> None:
    """Replace the function by one that ends this process without any goodbye when it is called again."""
    function, calls = getattr(owner, name), []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    setattr(owner, name, counted)


def killed(where: str, arguments: list[str]) -> list[int]:
    """Exit codes of two processes, of which one dies."""
    join = dist.init_process_group
    with tempfile.NamedTemporaryFile() as store:

        def run_rank(rank: int) -> None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            own = dist.FileStore(store.name, 2)
            dist.init_process_group = lambda kind: join(kind, store=own, rank=rank, world_size=2)
            if (
                where == "kill-writer" and rank == 1
            ):  # when the other one may have written its shard
                kill_at_second_call(FileSystemWriter, "write_data")
            if (
                where == "kill-pointer" and rank == 0
            ):  # when all shards are there, and nothing says so
                kill_at_second_call(files, "replacing")
            app(arguments)

        return fork(run_rank, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, commands = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if what == "kill":
        codes = {where: killed(where, command) for where, command in commands.items()}
        # a line of its own: what was killed may have left half of one
        print(f"\n{json.dumps(codes)}")
    else:
        results = run_all(commands)
        Path(what, f"{RANK}.json").write_text(json.dumps(results))
