"""export, on checkpoints that trainers wrote: those of plain use hold y."""

from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import Regression, iterate, needs, net, same
from torch import Tensor, nn

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, AdamWScheduleFree, follow
from sfplus_kernels.cli.export import check, export

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


def loaded(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("names", [True, False])
def test_hugging_faces_checkpoint(tmp_path: Path, names: bool) -> None:
    """With param_names, and without: then by the class in config.json, and the Trainer's two groups."""
    needs("transformers", "accelerate")
    import transformers_runs as runs
    from transformers import GPT2LMHeadModel, Trainer

    class Plain(Trainer):
        """Saves y."""

        def create_optimizer(self, model: Any = None) -> Any:
            optimizer = super().create_optimizer(model)
            if names:
                order = {id(p): n for n, p in self.model.named_parameters()}
                for group in optimizer.param_groups:
                    group["param_names"] = [order[id(p)] for p in group["params"]]
            return optimizer

    trainer = runs.run(
        tmp_path / "run", Plain, (AdamWScheduleFree, {"lr": 0.02}), **runs.SAVES["steps"]
    )
    folder = tmp_path / "run" / "checkpoint-3"
    assert "holds y" in check(folder)
    export(folder, tmp_path / "x")
    x = iterate(trainer.model, trainer.inner)
    assert same(loaded(tmp_path / "x" / "model.safetensors"), x)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "x")
    assert same(again.state_dict(), x)
    saved = runs.run(tmp_path / "good", **runs.SAVES["steps"])
    assert "holds x" in check(tmp_path / "good" / "checkpoint-3")
    assert saved.inner.metrics()["k"] == 3


def test_pefts_checkpoint(tmp_path: Path) -> None:
    needs("peft", "transformers")
    import transformers_runs as runs
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        runs.gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    trainer = runs.run(tmp_path / "run", model=model, **runs.SAVES["steps"])
    folder = tmp_path / "run" / "checkpoint-3"
    assert "holds x" in check(folder)
    export(folder, tmp_path / "x")
    x = iterate(model, trainer.inner)
    file = loaded(tmp_path / "x" / "adapter_model.safetensors")
    assert same(file, {name.replace(".default", ""): value for name, value in x.items()})
    assert (tmp_path / "x" / "adapter_config.json").exists()


def test_accelerates_checkpoint(tmp_path: Path) -> None:
    """Without names it is refused: safetensors sorts the weights, so their order says nothing."""
    needs("accelerate")
    from accelerate import Accelerator

    accelerator = Accelerator()
    model = net()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(Regression(40), batch_size=8)
    model, wrapped, loader = accelerator.prepare(model, optimizer, loader)
    wrapped.train()
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step(loss=loss)
        optimizer.zero_grad()
    accelerator.save_state(str(tmp_path / "state"))
    with pytest.raises(ValueError, match="safetensors does not keep the order.*--names-from"):
        check(tmp_path / "state")
    names = [name for name, _ in model.named_parameters()]
    assert "holds y" in check(tmp_path / "state", names)
    export(tmp_path / "state", tmp_path / "x.safetensors", names)
    assert same(loaded(tmp_path / "x.safetensors"), iterate(model, optimizer))


def test_lightnings_checkpoint(tmp_path: Path) -> None:
    needs("lightning")
    import lightning_runs as runs
    from lightning.pytorch.callbacks import ModelCheckpoint

    module = runs.Module(runs.adamw)
    saver = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=5)
    trainer = runs.fit(
        tmp_path,
        module,
        runs.TrainOnly(),
        saver,
        adapter=False,
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    (path,) = (tmp_path / "steps").glob("*.ckpt")
    assert "holds y" in check(path)
    export(path, tmp_path / "x.safetensors")
    assert same(loaded(tmp_path / "x.safetensors"), iterate(module, trainer.inner))


def test_torchtitans_checkpoint(tmp_path: Path) -> None:
    """Its flat keys, in a folder of torch.distributed.checkpoint."""
    needs("torchtitan")
    import test_torchtitan as tests
    import torch.distributed.checkpoint as dcp

    model = net()
    optimizers = tests.make("AdamCScheduleFreePlus", [model])
    tests.train(model, optimizers, 0, 3)
    (inner,) = optimizers.optimizers
    for follower in list(sfplus_kernels.integrations.follow._followers[model]):
        follower.remove()  # so that y is saved
    state = {**model.state_dict(), "optimizer": optimizers.state_dict()}
    dcp.save(state, checkpoint_id=tmp_path / "it")
    assert "holds y" in check(tmp_path / "it")
    export(tmp_path / "it", tmp_path / "x.pt")
    file = torch.load(tmp_path / "x.pt")
    assert file.keys() == dict(model.named_parameters()).keys()
    assert same(file, iterate(model, inner))


def test_follow_saves_the_names(tmp_path: Path) -> None:
    """Where the shapes alone would fit in several ways."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    optimizer = AdamWScheduleFree([model[2].weight, model[0].weight])
    follower = follow(model, optimizer)
    optimizer.train()
    model(Regression().x).square().mean().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["param_names"] == ["2.weight", "0.weight"]
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "it.pt")
    follower.remove()
    export(tmp_path / "it.pt", tmp_path / "x.pt")
    file = torch.load(tmp_path / "x.pt")
    for name, p in (("2.weight", model[2].weight), ("0.weight", model[0].weight)):
        assert torch.equal(file[name], optimizer.iterates(p).x)
