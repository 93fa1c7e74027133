"""examples/train_lm.py --parallel: real processes (gloo, started by torchrun) have the losses of one."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_lm
import train_lm_runs
from lm import files, report
from lm.parallel import Processes
from lm.run import Trainer
from lm.settings import Parallel
from torch.distributed.checkpoint import FileSystemReader
from train_lm_runs import ENVIRONMENT, STEPS, invoke, metrics
from train_lm_worker import STOPS_AT

WORKER = Path(__file__).with_name("train_lm_worker.py")
ALONE = ("--optimizer", "adamw-schedulefree")  # the two others are the default
INTERRUPTED = 130

# With the example's own step sizes 24 steps make 1e-4 of a rounding: nothing could be compared.
CALM = ("--lr-factor", "0.1")


def tiny(runs: Path, name: str, *arguments: str) -> list[str]:
    return train_lm_runs.tiny(runs, name, *CALM, *arguments)


def train(runs: Path, name: str, *arguments: str) -> Path:
    return train_lm_runs.train(runs, name, *CALM, *arguments)


def torchrun(world: int, script: Path, *arguments: str) -> tuple[int, str]:
    options = ["--standalone", "--nproc-per-node", str(world)]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"},
    )
    try:
        output, _ = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends the others too
        process.communicate()
        raise
    return process.returncode, output


def position(folder: Path) -> dict[str, Any]:
    found = files.load_position(folder)
    assert found is not None
    return found


def assert_close(found: Path, expected: Path) -> None:
    """The same lines, but for rounding."""
    left, right = metrics(found), metrics(expected)
    assert [line.keys() for line in left] == [line.keys() for line in right]
    for a, b in zip(left, right, strict=True):
        assert a.pop("optimizer") == b.pop("optimizer")
        assert a == pytest.approx(b, rel=1e-5), a["step"]


def copy(folder: Path, name: str, **changes: Any) -> Path:
    """A run of another name, perhaps with other settings."""
    new = Path(shutil.copytree(folder, folder.with_name(name)))
    config = json.loads((new / "config.json").read_text())
    (new / "config.json").write_text(json.dumps(config | changes))
    return new


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(runs: Path) -> Path:
    """Both optimizers in one process, as ever."""
    return train(runs, "one")


@pytest.fixture(scope="module")
def one_alone(runs: Path) -> Path:
    return train(runs, "one-alone", *ALONE)


@pytest.fixture(scope="module")
def killed(runs: Path) -> dict[str, Path]:
    """Runs of two processes that died in their second save, by where they died."""
    commands = {
        where: tiny(runs, where, "--parallel", parallel)
        for where, parallel in (("kill-writer", "fsdp"), ("kill-pointer", "hsdp"))
    }
    (runs / "killed.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, str(WORKER), "kill", str(runs / "killed.json")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes["kill-writer"][1] == codes["kill-pointer"][0] == -signal.SIGKILL, done.stderr
    return {where: runs / where for where in commands}


@pytest.fixture(scope="module")
def stopped_by_one(runs: Path) -> Path:
    """The beginning of a run: one process, divided in one."""

    def step_and_interrupt(self: Trainer) -> None:
        step(self)
        if self.done == STOPS_AT:
            signal.raise_signal(signal.SIGINT)

    step = Trainer._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step_and_interrupt)
        code, output = invoke(*tiny(runs, "grows", "--parallel", "fsdp"))
    assert code == INTERRUPTED, output
    assert position(runs / "grows")["done"] == STOPS_AT
    return runs / "grows"


@pytest.fixture(scope="module")
def results(
    runs: Path, one: Path, killed: dict[str, Path], stopped_by_one: Path
) -> list[dict[str, Any]]:
    """What two processes did, one run after the other: by rank, then by the name of the run."""
    fsdp = ("--parallel", "fsdp")
    commands = {
        "ddp": tiny(runs, "ddp", "--parallel", "ddp"),
        "hsdp": tiny(runs, "hsdp", "--parallel", "hsdp"),
        "fsdp": tiny(runs, "fsdp", *fsdp),
        "stop": ["ctrl-c", *tiny(runs, "stopped", *fsdp)],
        "go on": ["--resume", str(runs / "stopped")],
        "alone": ["ctrl-c", *tiny(runs, "alone", *fsdp, *ALONE)],
        "go on alone": ["--resume", str(runs / "alone")],
        "killed": ["--resume", str(copy(killed["kill-writer"], "same layout"))],
        "grown": ["--resume", str(stopped_by_one)],
        "batch": tiny(runs, "never", *fsdp, "--batch", "3"),
        "for one": tiny(runs, "never"),
        "one device": tiny(runs, "never", *fsdp, "--device", "cpu:0"),
        "resumed for one": ["--resume", str(one)],
        "contradiction": ["--resume", str(runs / "fsdp"), "--parallel", "ddp"],
        "taken": tiny(runs, "fsdp", *fsdp),
    }
    (runs / "commands.json").write_text(json.dumps(list(commands.values())))
    code, output = torchrun(2, WORKER, str(runs), str(runs / "commands.json"))
    assert code == 0, output
    ranks = [json.loads((runs / f"{rank}.json").read_text()) for rank in range(2)]
    return [dict(zip(commands, rank, strict=True)) for rank in ranks]


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", Parallel)
def test_losses_of_one_process(
    results: list[dict[str, Any]], runs: Path, one: Path, parallel: str
) -> None:
    """At y, and at x too: no process evaluates with weights that it gathered before."""
    assert_close(runs / parallel, one)
    for rank in results:
        assert rank[parallel]["code"] == 0
        assert rank[parallel]["sequences"] == [2]  # of 4


def test_losses_of_schedule_free_adamw(
    results: list[dict[str, Any]], runs: Path, one_alone: Path
) -> None:
    """Stopped and resumed, with the third optimizer."""
    assert [rank["go on alone"]["code"] for rank in results] == [0, 0]
    assert_close(runs / "alone", one_alone)


def test_first_process_alone_writes(results: list[dict[str, Any]], runs: Path) -> None:
    first, second = results
    assert f"Results are in {runs / 'fsdp'}" in first["fsdp"]["output"]
    assert "of which the optimizer" in first["fsdp"]["output"]
    assert second["fsdp"]["output"] == second["stop"]["output"] == ""
    for name in Parallel:
        found = {path.name for path in (runs / name).iterdir()}
        last = position(runs / name)["folder"]
        assert found == {"config.json", "metrics.jsonl", report.PICTURE, files.POSITION, last}


def test_model_is_divided(results: list[dict[str, Any]], runs: Path) -> None:
    """Into as many shares as the processes hold of one copy."""
    assert shares(runs / "ddp") == 1
    assert shares(runs / "fsdp") == 2
    assert shares(runs / "hsdp") == 1  # two copies


def shares(folder: Path) -> int:
    reader = FileSystemReader(folder / position(folder)["folder"])
    tensors = reader.read_metadata().state_dict_metadata
    names = ("model.head.weight", "optimizer.state.blocks.0.qkv.weight.exp_avg")
    (count,) = {len(tensors[name].chunks) for name in names}
    return count


# -- stopping and going on ----------------------------------------------------------------------------


def test_ctrl_c_stops_all_processes(results: list[dict[str, Any]], runs: Path) -> None:
    """One of them is told; the run that goes on has the bits of the one that was not stopped."""
    first, second = results
    assert first["stop"]["code"] == second["stop"]["code"] == INTERRUPTED
    command = shlex.join(
        ["torchrun", "--nproc-per-node", "2", str(WORKER), "--resume", str(runs / "stopped")]
    )
    assert f"Stopped, and saved. To go on: {command}" in first["stop"]["output"]
    assert f"{STOPS_AT}/{STEPS}" in first["stop"]["output"]
    assert first["go on"]["code"] == second["go on"]["code"] == 0
    assert metrics(runs / "stopped") == metrics(runs / "fsdp")


def test_killed_in_a_save(killed: dict[str, Path]) -> None:
    """The checkpoint before it is whole; what was written of the other one does not count."""
    for where, folder in killed.items():
        assert position(folder)["done"] == 8
        assert position(folder)["folder"] == files.DIVIDED[0]
        unfinished = {path.name for path in (folder / files.DIVIDED[1]).iterdir()}
        assert (".metadata" in unfinished) == (where == "kill-pointer")
        assert len(metrics(folder)) == 16


def test_killed_run_goes_on(results: list[dict[str, Any]], runs: Path) -> None:
    """Among as many processes: bit for bit."""
    assert [rank["killed"]["code"] for rank in results] == [0, 0]
    assert metrics(runs / "same layout") == metrics(runs / "fsdp")


@pytest.mark.slow  # as below, with more processes than before
def test_two_processes_then_four(killed: dict[str, Path], one: Path) -> None:
    folder = copy(killed["kill-pointer"], "four")
    code, output = torchrun(4, Path(train_lm.__file__), "--resume", str(folder))
    assert code == 0, output
    assert_close(folder, one)
    assert shares(folder) == 2  # of each of two copies


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_two_processes_then_one(killed: dict[str, Path], one: Path, parallel: str) -> None:
    """A checkpoint does not know how the model was divided."""
    folder = copy(killed["kill-writer"], f"one {parallel}", parallel=parallel)
    code, output = invoke("--resume", str(folder))
    assert code == 0, output
    assert_close(folder, one)


def test_one_process_then_two(results: list[dict[str, Any]], runs: Path, one: Path) -> None:
    assert [rank["grown"]["code"] for rank in results] == [0, 0]
    assert [rank["grown"]["sequences"] for rank in results] == [[2], [2]]
    assert_close(runs / "grows", one)


# -- refusals and parts ---------------------------------------------------------------------------


def test_refused(results: list[dict[str, Any]], runs: Path) -> None:
    messages = {
        "batch": "a batch of 3 sequences cannot be divided equally among 2 processes",
        "for one": "2 processes were started, and the run is for one",
        "one device": "cpu:0 is one device, and there are 2 processes",
        "resumed for one": "2 processes were started, and the run is for one",
        "contradiction": "the run keeps its settings; leave out parallel",
    }
    for rank in results:
        for name, message in messages.items():
            assert rank[name]["code"] == 2
            assert message in rank[name]["output"]
    assert not (runs / "never").exists()


def test_taken_name(results: list[dict[str, Any]]) -> None:
    """Only the first process finds out, and none waits for it."""
    first, second = (rank["taken"] for rank in results)
    assert (first["code"], second["code"], second["output"]) == (2, 2, "")
    assert "exists" in first["output"]


def test_unknown_way(runs: Path) -> None:
    code, output = invoke(*tiny(runs, "never", "--parallel", "pipeline"))
    assert code == 2
    assert "pipeline" in output


def test_shares_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they are the batch, and each sequence has one reader."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        found.append(Processes(Parallel.DDP).share(torch.arange(8)))
    assert torch.equal(torch.cat(found), torch.arange(8))
    assert {len(share) for share in found} == {2}


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Processes(Parallel.FSDP).own_device("cuda") == torch.device("cuda:3")
    assert Processes(Parallel.FSDP).own_device("cpu") == torch.device("cpu")
    assert Processes(None).own_device("cuda") == torch.device("cuda")
