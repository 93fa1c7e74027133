"""The training loop: the same weights, text and number of steps for each optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import Interrupt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lm.clock import Clock, Mark
from lm.data import Corpus, windows
from lm.files import (
    MetricsFile,
    load_checkpoint,
    load_divided,
    load_position,
    save_checkpoint,
    save_divided,
)
from lm.model import GPT, mean_loss
from lm.optimizers import make_method
from lm.parallel import Processes
from lm.settings import OptimizerName, Settings


def train_all(settings: Settings, folder: Path, corpus: Corpus, processes: Processes) -> bool:
    """Train with each optimizer in turn, from the checkpoint in ``folder`` if there is one.

    Returns:
        Whether all of them are done; False after Ctrl-C, with a checkpoint to go on from.
    """
    load = load_position if settings.parallel else load_checkpoint
    checkpoint = processes.from_first(load(folder))
    size = checkpoint["metrics_size"] if checkpoint else 0
    metrics = MetricsFile(folder, size, writes=processes.first)
    remaining = list(settings.optimizers)
    if checkpoint:
        remaining = remaining[remaining.index(OptimizerName(checkpoint["name"])) :]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, disable=not processes.first)
    with Interrupt() as interrupt, progress:
        for name in remaining:
            trainer = Trainer(name, settings, folder, corpus, metrics, processes)
            if checkpoint:
                trainer.restore(checkpoint)
                checkpoint = None
            if not trainer.run(progress, interrupt):
                return False
    return True


class Trainer:
    """One model, one optimizer, and the steps that they take."""

    def __init__(
        self,
        name: OptimizerName,
        settings: Settings,
        folder: Path,
        corpus: Corpus,
        metrics: MetricsFile,
        processes: Processes,
    ) -> None:
        self.name, self.settings, self.folder, self.metrics = name, settings, folder, metrics
        self.processes = processes
        self.device = processes.own_device(settings.device)
        model = GPT(settings.dim, settings.layers, settings.context, settings.seed)
        self.model = processes.divide(model.to(self.device))
        self.method = make_method(name, self.model.parameters(), settings)
        self.text = corpus.train
        self.validation = [
            (self._own_share(tokens), self._own_share(targets))
            for tokens, targets in corpus.validation_batches(
                settings.eval_batches, settings.batch, settings.context
            )
        ]
        # The only source of chance in training (there is no dropout): the order of the text.
        self.generator = Generator().manual_seed(settings.seed)
        self.clock = Clock(self.device)
        self.done = 0
        self.pending: list[tuple[Tensor, tuple[Mark, Mark, Mark, Mark]]] = []

    def run(self, progress: Progress, interrupt: Interrupt) -> bool:
        """Go on to the last step, or until Ctrl-C; says whether the last step was reached."""
        steps = self.settings.steps
        task = progress.add_task(self.name, total=steps, completed=self.done, status="")
        while self.done < steps and not self.processes.any(interrupt.requested):
            self._step()
            evaluated = self.done == steps or self.done % self.settings.eval_every == 0
            if evaluated or self.done % self.settings.log_every == 0:
                progress.update(task, status=self._log(evaluated))
            if evaluated:
                self.save()
            progress.update(task, completed=self.done)
        if self.done < steps:
            self.metrics.write(self._finished_lines())
            self.save()
        return self.done == steps

    def _log(self, evaluated: bool) -> str:
        """Write the lines of the steps since the last call; returns a summary for the progress bar."""
        lines = self._finished_lines()
        last = lines[-1]
        last[self.method.rate_name] = self.method.rate()
        if evaluated:
            last |= self.method.validate(self._evaluate)
        if self.done == self.settings.steps:
            last["state_bytes"] = self.method.state_bytes()
        self.metrics.write(lines)
        tokens = len(lines) * self.settings.batch * self.settings.context
        speed = tokens / sum(line["seconds"] for line in lines)
        rate = f"{self.method.rate_name} {last[self.method.rate_name]:.1e}"
        return f"loss {last['loss']:.3f} {rate} {speed / 1000:.1f}k tokens/s"

    def _step(self) -> None:
        start = self.clock.mark()
        tokens, targets = windows(
            self.text, self.settings.batch, self.settings.context, self.generator
        )
        loss = mean_loss(self.model, self._own_share(tokens), self._own_share(targets))
        loss.backward()
        before = self.clock.mark()
        self.method.step(self.done, loss.detach())
        after = self.clock.mark()
        self.method.optimizer.zero_grad()
        self.pending.append((loss.detach(), (start, before, after, self.clock.mark())))
        self.done += 1

    def _own_share(self, batch: Tensor) -> Tensor:
        return self.processes.share(batch).to(self.device)

    def _finished_lines(self) -> list[dict[str, Any]]:
        """A line for each step since the last call; on a GPU this is where one waits for it."""
        self.clock.wait()
        losses = self.processes.means([loss for loss, _ in self.pending])
        lines = [
            {
                "optimizer": self.name,
                "step": self.done - len(self.pending) + index,
                "loss": loss,
                "seconds": self.clock.seconds(start, end),
                "optimizer_seconds": self.clock.seconds(before, after),
            }
            for index, (loss, (_, (start, before, after, end))) in enumerate(
                zip(losses, self.pending, strict=True), start=1
            )
        ]
        self.pending.clear()
        return lines

    @torch.no_grad()
    def _evaluate(self) -> float:
        losses = [mean_loss(self.model, *batch).double() for batch in self.validation]
        return self.processes.means([torch.stack(losses).mean()])[0]

    def save(self) -> None:
        """Everything that the next step depends on."""
        position = {"name": str(self.name), "done": self.done, "metrics_size": self.metrics.size()}
        if self.settings.parallel:
            save_divided(self.folder, position, self._divided_state(), self.processes.first)
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.method.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        save_checkpoint(self.folder, position | state)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """What ``save`` saved. The parameters hold y then and now: neither side has called eval()."""
        self.done = checkpoint["done"]
        if self.settings.parallel:
            state = self._divided_state()
            load_divided(self.folder, checkpoint, state)
            model, optimizer = state["model"], state["optimizer"]
            set_state_dict(
                self.model,
                self.method.optimizer,
                model_state_dict=model,
                optim_state_dict=optimizer,
            )
            self.generator.set_state(state["generator"])
            return
        self.model.load_state_dict(checkpoint["model"])
        self.method.optimizer.load_state_dict(checkpoint["optimizer"])
        self.generator.set_state(checkpoint["generator"])

    def _divided_state(self) -> dict[str, Any]:
        """What a checkpoint holds under ``--parallel``, by names that do not depend on how."""
        model, optimizer = get_state_dict(self.model, self.method.optimizer)
        return {"model": model, "optimizer": optimizer, "generator": self.generator.get_state()}
