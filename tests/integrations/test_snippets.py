"""The snippets of docs/integrations.md for libraries that have no adapter, run as they stand there."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from libraries import N_CLASSES, Regression, Watch, held, iterate, needs, net, same
from support import ROOT
from torch import nn

import sfplus_kernels
from sfplus_kernels import AdamCScheduleFreePlus, follow

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

DOCS = (ROOT / "docs" / "integrations.md").read_text()


def snippet(name: str) -> str:
    """The first block of Python below the heading that begins so."""
    found = re.search(rf"^#+ {re.escape(name)}.*?^```python\n(.*?)^```", DOCS, re.M | re.S)
    assert found, name
    return found.group(1)


def test_every_block_is_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS, re.M | re.S)
    assert len(blocks) > 10
    for block in blocks:
        compile(block, "docs/integrations.md", "exec")


def test_skorch(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("skorch")
    import pickle

    from skorch import NeuralNetClassifier

    names: dict[str, Any] = {"__name__": "snippet"}
    exec(snippet("skorch"), names)
    module = ModuleType("snippet")
    module.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "snippet", module)  # where pickle finds the callback again
    data = Regression()
    learner = NeuralNetClassifier(
        net(),
        criterion=nn.CrossEntropyLoss,
        optimizer=AdamCScheduleFreePlus,
        optimizer__lr=0.1,
        max_epochs=2,
        batch_size=16,
        iterator_train__shuffle=False,
        train_split=None,
        verbose=0,
        callbacks=[names["ScheduleFree"]()],
    )
    learner.initialize()
    watch = Watch(learner.optimizer_)
    seen: list[float] = []
    plain = learner.train_step_single

    def noted(*arguments: Any, **keywords: Any) -> Any:
        step = plain(*arguments, **keywords)
        seen.append(float(step["loss"]))
        return step

    learner.train_step_single = noted
    learner.partial_fit(data.x.numpy(), data.y.numpy())
    assert watch.losses == pytest.approx(seen)
    x = iterate(learner.module_, learner.optimizer_)
    assert same(held(learner.module_), x)
    learner.predict(data.x.numpy())
    assert same(held(learner.module_), x)
    del learner.train_step_single
    assert same(held(pickle.loads(pickle.dumps(learner)).module_), x)


def test_fastai(tmp_path: Path) -> None:
    needs("fastai")
    from fastai.callback.tracker import SaveModelCallback
    from fastai.callback.training import GradientAccumulation
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    names: dict[str, Any] = {}
    exec(snippet("fastai"), names)
    data = Regression()
    train = torch.utils.data.DataLoader(data, batch_size=8)
    model = net()
    learner = Learner(
        DataLoaders(train, train, device="cpu"),
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=names["opt_func"],
        cbs=[
            names["ScheduleFree"](),
            GradientAccumulation(32),
            SaveModelCallback(fname="best", monitor="valid_loss"),
        ],
        path=tmp_path,
    )
    learner.create_opt()
    inner = sfplus_kernels.optim.unwrap(learner.opt)
    watch = Watch(inner)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, lr=0.1)
    with torch.no_grad():
        first = nn.functional.cross_entropy(net()(data.x[:32]), data.y[:32])
    assert len(watch.losses) == 2
    assert watch.losses[0] == pytest.approx(float(first), rel=1e-5)
    assert same(held(model), iterate(model, inner))
    learner.save("end")
    for name in ("best", "end"):
        file = torch.load(tmp_path / "models" / f"{name}.pth", weights_only=False)
        assert same(file.get("model", file), iterate(model, inner))


def test_keras(tmp_path: Path) -> None:
    needs("keras")
    import keras

    if keras.backend.backend() != "torch":
        pytest.skip("another backend was chosen")
    names: dict[str, Any] = {}
    exec(snippet("Keras"), names)
    data = Regression()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(N_CLASSES)]
    inputs = keras.Input((6,))
    outputs = layers[1](layers[0](inputs))
    model = names["ScheduleFreeModel"](inputs, outputs)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=None,
        jit_compile=False,
    )
    watch = Watch(model.schedule_free)
    model.fit(data.x.numpy(), data.y.numpy(), batch_size=16, epochs=1, shuffle=False, verbose=0)
    assert len(watch.losses) == 4
    assert watch.losses[0] != watch.losses[1]
    x = [model.schedule_free.iterates(v.value).x for v in model.trainable_variables]
    model.evaluate(data.x.numpy(), data.y.numpy(), verbose=0)
    for variable, value in zip(model.trainable_variables, x, strict=True):
        assert torch.equal(variable.value.detach(), value)
    model.save_weights(tmp_path / "it.weights.h5")


def test_torchtune() -> None:
    """As a recipe of torchtune 0.6 makes its optimizer and steps; the library itself is not run."""
    names: dict[str, Any] = {"model": net(), "num_tokens": torch.tensor(16)}
    data = Regression()
    loss = nn.functional.cross_entropy(names["model"](data.x[:16]), data.y[:16], reduction="sum")
    names["running_loss"] = loss.detach()
    (loss / 16).backward()
    names["optimizer"] = AdamCScheduleFreePlus(names["model"].parameters(), lr=0.1)
    names["save_checkpoint"] = lambda: names.update(saved=held(names["model"]))
    exec(snippet("torchtune"), names)
    assert names["optimizer"].metrics()["function_value"] == pytest.approx(float(loss) / 16)
    assert same(names["saved"], iterate(names["model"], names["optimizer"]))


def test_torchtunes_configuration() -> None:
    needs("torchtune")
    from omegaconf import OmegaConf
    from torchtune.config import instantiate

    settings = {"_component_": "sfplus_kernels.AdamCScheduleFreePlus", "lr": 1.0}
    optimizer = instantiate(OmegaConf.create(settings), net().parameters())
    assert type(optimizer) is AdamCScheduleFreePlus


def test_composer(tmp_path: Path) -> None:
    """Microbatches of four, whose loss Composer's closure hands on; evaluation and checkpoints at x."""
    needs("composer")
    from composer import Trainer
    from composer.models import ComposerModel

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.at_x: list[bool] = []

        def forward(self, batch: Any) -> Any:
            return self.net(batch[0])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return nn.functional.cross_entropy(outputs, batch[1])

        def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
            self.at_x.append(same(held(self), iterate(self, optimizer)))
            return self.forward(batch)  # as Composer's own models do: no hook sees it

        def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
            return {}

    model, data = Model(), Regression()
    optimizer = AdamCScheduleFreePlus(model.parameters(), lr=0.1)
    names: dict[str, Any] = {}
    exec(snippet("Composer"), names)
    follow(model, optimizer)
    watch = Watch(optimizer)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        eval_dataloader=torch.utils.data.DataLoader(data, batch_size=16),
        eval_interval="2ba",
        max_duration="4ba",
        optimizers=optimizer,
        device="cpu",
        device_train_microbatch_size=4,
        callbacks=[names["ScheduleFree"]()],
        save_folder=str(tmp_path),
        save_interval="3ba",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    with torch.no_grad():
        first = nn.functional.cross_entropy(net()(data.x[:16]), data.y[:16])
    assert len(watch.losses) == 4
    assert watch.losses[0] == pytest.approx(float(first), rel=1e-5)
    assert len(model.at_x) >= 8
    assert all(model.at_x)
    files = [path for path in tmp_path.glob("*ba4*") if path.is_file()]
    saved = torch.load(files[0], weights_only=False)["state"]["model"]
    assert same(saved, iterate(model, optimizer))


def test_fabric() -> None:
    needs("lightning")
    from lightning.fabric import Fabric

    model = net()
    names: dict[str, Any] = {
        "fabric": Fabric(accelerator="cpu"),
        "model": model,
        "optimizer": AdamCScheduleFreePlus(model.parameters(), lr=0.1),
        "loader": [(Regression().x[:8], Regression().y[:8])] * 3,
        "loss_fn": lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1]),
    }
    watch = Watch(names["optimizer"])
    exec(snippet("Fabric"), names)
    assert len(watch.losses) == 3
    assert watch.losses[-1] == pytest.approx(float(names["loss"]))
    assert same(model.state_dict(), iterate(model, names["optimizer"].optimizer))


def test_follow() -> None:
    names: dict[str, Any] = {"model": net()}
    exec(snippet("follow"), names)
    names["model"].eval()(Regression().x)
    assert not names["optimizer"].param_groups[0]["train_mode"]
