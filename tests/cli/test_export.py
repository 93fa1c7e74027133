"""export: x out of a checkpoint, without the model; equal bits with what the optimizer says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict

from sfplus_kernels import (
    AdamCScheduleFreePlus,
    AdamWScheduleFree,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    follow,
)
from sfplus_kernels.checkpoints.names import fits
from sfplus_kernels.cli.export import check, export, main

ANNEALED = {"lr": 0.1, "weight_decay": 5.0, "sf_beta1_anneal_steps": 5}


def make(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 7), nn.Linear(7, 3)
    ).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: int = 4) -> None:
    optimizer.train()
    for k in range(steps):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(k)).to(model[0].weight.dtype)
        loss = model(x).float().square().mean()
        loss.backward()
        if isinstance(optimizer, AdamCScheduleFreePlus):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        optimizer.zero_grad()


def x_of(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    return {n: optimizer.iterates(p).x.to(p.dtype) for n, p in model.named_parameters()}


def assert_x(file: Any, model: nn.Module, optimizer: Any) -> None:
    """The file holds x, bit for bit, and the buffers as they were."""
    x = x_of(model, optimizer)
    assert {n for n, _ in model.state_dict().items()} == set(file)
    for name, value in file.items():
        assert torch.equal(value, x.get(name, model.state_dict()[name])), name


def test_keys_of_others_alone_are_no_beginning(tmp_path: Path) -> None:
    """Of a frozen layer there is nothing but an offloader's; its weights are x as they are."""
    model = make()
    model[3].requires_grad_(False)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    for p in model[3].parameters():
        optimizer.state[p]["of an offloader"] = torch.ones(2)
    train(model, optimizer)
    save(model, optimizer, tmp_path / "c.pt")
    export(tmp_path / "c.pt", tmp_path / "x.pt")
    assert_x(torch.load(tmp_path / "x.pt"), model, optimizer)


def save(model: nn.Module, optimizer: Any, path: Path) -> None:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


MAKERS: dict[str, Any] = {
    "plus": lambda m: AdamCScheduleFreePlus(m.named_parameters(), **ANNEALED),
    "adamw": lambda m: AdamWScheduleFree(m.named_parameters(), lr=0.05),
    "sgd": lambda m: SGDScheduleFree(m.named_parameters(), lr=0.05, momentum=0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_one_file(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Also bfloat16, where y is a master_param, a beta that is annealed, and a beta of 0."""
    model = make(dtype)
    optimizer = MAKERS[name](model)
    train(model, optimizer)
    y = {n: p.detach().clone() for n, p in model.named_parameters()}
    save(model, optimizer, tmp_path / "it.pt")
    assert "holds y" in check(tmp_path / "it.pt")
    assert "x was formed" in export(tmp_path / "it.pt", tmp_path / "x.pt")
    file = torch.load(tmp_path / "x.pt")
    assert_x(file, model, optimizer)
    assert any(not torch.equal(file[n], y[n]) for n in y)
    far = max(
        float((optimizer.iterates(p).x - optimizer.iterates(p).y).abs().max())
        for p in model.parameters()
    )
    assert f"max |x - y| is {far:.3g}" in check(tmp_path / "it.pt")


def test_a_file_that_holds_x_is_copied(tmp_path: Path) -> None:
    model = make()
    optimizer = MAKERS["plus"](model)
    train(model, optimizer)
    optimizer.eval()
    save(model, optimizer, tmp_path / "it.pt")
    assert "holds x" in check(tmp_path / "it.pt")
    assert "x already" in export(tmp_path / "it.pt", tmp_path / "x.pt")
    assert_x(torch.load(tmp_path / "x.pt"), model, optimizer)


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # of the saving
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distributed_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    """A folder that torch.distributed.checkpoint wrote, in one process without a group."""
    model = make(dtype)
    optimizer = MAKERS["plus"](model)
    train(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state, "step": 4}, checkpoint_id=tmp_path / "it")
    assert "holds y" in check(tmp_path / "it")
    export(tmp_path / "it", tmp_path / "x.pt")
    assert_x(torch.load(tmp_path / "x.pt"), model, optimizer)


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # of the saving
def test_keys_of_others_are_no_weights(tmp_path: Path) -> None:
    """What an offloader put into the state of parameters, one of which has not begun."""
    model = make()
    optimizer = MAKERS["plus"](model)
    model[4].bias.requires_grad_(False)
    train(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    for name in ("0.weight", "4.bias"):
        state["state"].setdefault(name, {})["offloaded"] = torch.ones(2)
    dcp.save({**weights, "optimizer": state}, checkpoint_id=tmp_path / "it")
    export(tmp_path / "it", tmp_path / "x.pt")
    assert_x(torch.load(tmp_path / "x.pt"), model, optimizer)


def test_names(tmp_path: Path) -> None:
    """From the groups (follow saves them), from a file, by shapes in order; refused where two fit."""
    model = make()
    optimizer = AdamWScheduleFree(
        [{"params": list(model[3:].parameters())}, {"params": list(model[:3].parameters())}]
    )
    train(model, optimizer)
    save(model, optimizer, tmp_path / "it.pt")
    with pytest.raises(ValueError, match="no param_names.*--names-from"):
        export(tmp_path / "it.pt", tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
    names = [n for part in (model[3:], model[:3]) for n, _ in part.named_parameters()]
    order = [n for n, _ in model.named_parameters()]
    names = [*order[4:], *order[:4]]
    export(tmp_path / "it.pt", tmp_path / "x.pt", names)
    assert_x(torch.load(tmp_path / "x.pt"), model, optimizer)
    with pytest.raises(ValueError, match="3 names for the 8 parameters"):
        export(tmp_path / "it.pt", tmp_path / "other.pt", names[:3])
    with pytest.raises(ValueError, match="another order"):
        export(tmp_path / "it.pt", tmp_path / "other.pt", order)

    whole = AdamWScheduleFree(model.parameters())
    train(model, whole)
    save(model, whole, tmp_path / "whole.pt")
    export(tmp_path / "whole.pt", tmp_path / "whole-x.pt")
    assert_x(torch.load(tmp_path / "whole-x.pt"), model, whole)

    follow(model, optimizer)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["param_names"] == order[4:]


def test_shapes_that_fit_in_one_way_or_in_several() -> None:
    a, b, c = (3, 2), (2,), (3,)
    assert fits([a, b], [a, c, b]) == [0, 2]
    assert fits([b], [a, b, b]) is None
    assert fits([a, b, None, c], [a, b, b, c]) == [0, 1, 2, 3]
    assert fits([c, a], [a, c]) is None


def test_wrapped_names(tmp_path: Path) -> None:
    """torch.compile and DDP put something before the names, in one of the two files or in both."""
    model = make()
    optimizer = MAKERS["adamw"](model)
    train(model, optimizer)
    weights = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "optimizer": optimizer.state_dict()}, tmp_path / "it.pt")
    export(tmp_path / "it.pt", tmp_path / "x.pt")
    file = torch.load(tmp_path / "x.pt")
    assert_x({n.removeprefix("module._orig_mod."): v for n, v in file.items()}, model, optimizer)


def test_dtype_and_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make()
    optimizer = MAKERS["plus"](model)
    train(model, optimizer)
    save(model, optimizer, tmp_path / "it.pt")

    monkeypatch.chdir(tmp_path)
    whole = [sys.executable, "-m", "sfplus_kernels", "export"]
    command = [*whole, "it.pt", "x.pt", "--dtype", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file = torch.load(tmp_path / "x.pt")
    for name, value in x_of(model, optimizer).items():
        assert torch.equal(file[name], value.bfloat16())
    assert file["1.num_batches_tracked"].dtype == torch.int64
    main(["it.pt", "--check"])
    assert "holds y" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is there already"):
        main(["it.pt", "x.pt"])
    with pytest.raises(SystemExit, match="No such file"):
        main(["nothing.pt", "--check"])
    with pytest.raises(SystemExit) as wrong:
        main(["it.pt"])
    assert wrong.value.code == 2


def _weights_alone(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def _torchs(model: nn.Module, path: Path) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    save(model, optimizer, path)


def _wrapper(model: nn.Module, path: Path) -> None:
    optimizer = ScheduleFreeWrapper(torch.optim.SGD(model.named_parameters(), lr=0.1))
    train(model, optimizer)
    save(model, optimizer, path)


def _upstream(model: nn.Module, path: Path) -> None:
    import schedulefree

    optimizer = schedulefree.AdamWScheduleFree(model.parameters())
    train(model, optimizer)
    save(model, optimizer, path)


def _not_a_checkpoint(model: nn.Module, path: Path) -> None:
    path.write_text("nothing")


REFUSED = {
    _weights_alone: "no optimizer state.*expected a trainer's checkpoint",
    _torchs: "none of sfplus_kernels",
    _wrapper: "ScheduleFreeWrapper; load it, call eval",
    _upstream: "schedulefree package's, which keeps z.*same name, call eval",
    _not_a_checkpoint: "cannot read",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_refusals(tmp_path: Path, write: Any) -> None:
    write(make(), tmp_path / "it.pt")
    for call in (
        lambda: check(tmp_path / "it.pt"),
        lambda: export(tmp_path / "it.pt", tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match=REFUSED[write]):
            call()
    assert not (tmp_path / "x").exists()


def test_another_format_of_state_is_refused(tmp_path: Path) -> None:
    """Whatever it is: x is formed of a displacement in the state's dtype and of its beta, or not at all."""
    model = make()
    optimizer = MAKERS["plus"](model)
    train(model, optimizer)
    for change in (
        lambda state: state.update(displacement=state["displacement"].bfloat16()),
        lambda state: state.pop("displacement"),
    ):
        saved = optimizer.state_dict()
        saved["state"] = {index: dict(state) for index, state in saved["state"].items()}
        change(saved["state"][2])
        torch.save({"model": model.state_dict(), "optimizer": saved}, tmp_path / "it.pt")
        with pytest.raises(ValueError, match="kept in another format.*call eval"):
            check(tmp_path / "it.pt")


def test_refused_folders(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match="neither optimizer.pt nor optimizer.bin"):
        check(tmp_path)
    (tmp_path / "global_step5").mkdir()
    with pytest.raises(ValueError, match="DeepSpeed's ZeRO.*eval"):
        check(tmp_path)
