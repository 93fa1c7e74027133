"""A race: contestants in turns over the same tensors, and the ceilings that take turns with them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contestants.contestant import Contestant, Step, is_compiled
from bench.measure.budgets import AGAIN, CPU_MEMORY, SECONDS
from bench.measure.ceilings import (
    LEAST,
    Ceiling,
    Passes,
    ceilings,
    has_loops,
    loops_beside,
    main_ceiling,
    make_arena,
)
from bench.measure.check import Checked, check, checked_row, describe
from bench.measure.held import beside, ceiling_rows, hold_against, runs, seems_above
from bench.measure.pairs import ratio, take_turns_in_pairs
from bench.measure.profiling import profile_step
from bench.measure.room import leave_out_what_does_not_fit
from bench.measure.timing import CpuTimer, CudaTimer, Timer, captured, take_turns
from bench.record.provenance import last_level_cache
from bench.record.rows import BASELINE, Row, relate
from bench.work.memory import Memory, of_step
from bench.work.traffic import state_bytes
from bench.work.workloads import Shapes, Workload, alias, make_params


@dataclass
class Races:
    """Everything that the sections share."""

    device: torch.device
    contestants: Sequence[Contestant]
    quick: bool = False
    late: bool = False  # so that a part takes the fewest turns, for the others to have any
    tick: Callable[[], None] = lambda: None
    checked: dict[tuple, Checked] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        if cuda:  # events and streams are those of the current device
            index = self.device.index
            self.device = torch.device(
                "cuda", torch.cuda.current_device() if index is None else index
            )
            torch.cuda.set_device(self.device)
        properties: Any = torch.cuda.get_device_properties(self.device) if cuda else None
        cache = properties.L2_cache_size if cuda else last_level_cache()
        self.arena: Tensor = make_arena(self.device, self.quick, cache)
        self.timer: Timer = (CudaTimer if cuda else CpuTimer)(self.arena, cache)
        self.ceilings = ceilings(self.arena)
        self.main_ceiling = main_ceiling(self.device.type)
        self.has_loops = has_loops(self.device)
        self.memory = 0.85 * torch.cuda.mem_get_info(self.device)[0] if cuda else CPU_MEMORY

    def check(self, contestant: Contestant, workload: Workload) -> Checked:
        key = (contestant.name, workload.param_dtype, workload.grad_dtype)
        if key not in self.checked:
            self.checked[key] = check(
                contestant, self.device, workload.param_dtype, workload.grad_dtype
            )
        return self.checked[key]

    def turns(self, steps: dict[str, Step], kind: str, **options: Any) -> dict[str, list[float]]:
        budget, least = self._allowed(kind)
        options.setdefault("least", least)
        return take_turns(self.timer, steps, budget, self.tick, **options)

    def _allowed(self, kind: str) -> tuple[float, int]:
        """Seconds for the turns of a section, and the least number of turns."""
        budget = 0.0 if self.late else SECONDS[kind] / (10 if self.quick else 1)
        return budget, 3 if self.quick or self.late else 7

    def turns_beside(
        self,
        steps: dict[str, Step],
        rows: Mapping[str, Row],
        held: Mapping[str, Passes],
        found: Mapping[str, Ceiling],
        kind: str,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Turns of ``steps`` and of the ceilings ``found``, against which those in ``held`` are held.

        What seems to be quicker than its ceiling has up to ``AGAIN`` times some more turns, alone with that,
        and all count: noise goes, and what is wrong with a ceiling stays.
        """
        timed = {**runs(found), **steps}
        close = beside(found, held)
        rounds = self.turns(timed, kind, close=close, **options)
        for _ in range(0 if self.quick or self.late else AGAIN):
            doubtful = {
                name
                for name in held
                if seems_above(rows[name], rounds[name], held[name], found, rounds)
            }
            groups = [names for names in close if doubtful & {*names}]
            if not groups:
                break
            again = {name: timed[name] for names in groups for name in names}
            more = self.turns(again, kind, close=groups, **{**options, "most": 15})
            n = len(next(iter(more.values())))
            for name, seconds in rounds.items():
                seconds += more.get(name, [math.nan] * n)
        return rounds

    def _ceilings_of(
        self, steps: Iterable[Passes], numel: int, memory: Mapping[Passes, Sequence[Memory]]
    ) -> dict[str, Ceiling]:
        """What takes turns with steps of these passes over ``numel`` elements, which lie in ``memory``."""
        if not self.has_loops:
            return {self.main_ceiling: self.ceilings[self.main_ceiling]}
        in_caches = numel < LEAST and not self.quick
        return loops_beside(self.arena, steps, numel, {} if in_caches else memory)

    def _race(
        self,
        section: str,
        workload: Workload,
        shapes: Shapes,
        field_: list[Contestant],
        kind: str,
        *,
        profiled: bool = False,
        host: bool = False,
    ) -> list[Row]:
        rows = [self._checked_row(section, workload, shapes, c) for c in field_]
        checks = [self.check(c, workload) for c in field_]
        leave_out_what_does_not_fit(rows, field_, checks, workload, self.memory)
        steps, memory = self._made(rows, field_, workload, shapes, profiled)
        if not steps:
            return rows
        held = self._passes_of(rows, field_, workload)
        found = {} if host else self._ceilings_of(held.values(), rows[0].n_params, memory)
        by_name = {row.name: row for row in rows}
        held = {name: passes for name, passes in held.items() if name in steps}
        rounds = self.turns_beside(steps, by_name, held, found, kind, host=host)
        measured = self._relate(section, workload, rows, field_, rounds, found)
        if self.timer.asynchronous and section == "step":
            hosts = self.turns(steps, "launch", host=True, least=3, most=9)
            for row in rows:
                row.host = float(np.median(hosts[row.name])) if row.name in hosts else None
            rows += self._graphs(workload, rows, field_, steps)
        del steps, memory, found
        self._free()
        return [*measured, *rows]

    def _race_in_pairs(
        self, section: str, workload: Workload, field_: list[Contestant]
    ) -> list[Row]:
        """All of ``field_``, step after step, each beside the first one."""
        rows = [self._checked_row(section, workload, workload.shapes(), c) for c in field_]
        steps, _ = self._made(rows, field_, workload, workload.shapes(), False)
        baseline = steps.pop(BASELINE, None)
        if baseline is not None and steps:
            budget, least = self._allowed("pairs")
            pairs = take_turns_in_pairs(self.timer, baseline, steps, budget, self.tick, least=least)
            for row in rows:
                pair = pairs.get(row.name, [])
                if row.name == BASELINE:
                    row.set_times([base for own in pairs.values() for base, _ in own])
                    row.ratio_to_baseline = 1.0
                elif pair:
                    row.set_times([other for _, other in pair])
                    row.ratio_to_baseline = ratio(pair)
        del steps, baseline
        self._free()
        return rows

    def _passes_of(
        self, rows: list[Row], field_: list[Contestant], workload: Workload
    ) -> dict[str, Passes]:
        """The passes of each step that is to be timed."""
        return {
            row.name: self.check(contestant, workload).passes
            for row, contestant in zip(rows, field_, strict=True)
            if row.status == "ok"
        }

    def _made(
        self,
        rows: list[Row],
        field_: list[Contestant],
        workload: Workload,
        shapes: Shapes,
        profiled: bool,
    ) -> tuple[dict[str, Step], dict[Passes, tuple[Memory, ...]]]:
        """Steps of those still "ok", over shared parameters, one step in; where our passes' arrays lie."""
        running = [(c, row) for c, row in zip(field_, rows, strict=True) if row.status == "ok"]
        steps: dict[str, Step] = {}
        memory: dict[Passes, tuple[Memory, ...]] = {}
        if not running:
            return steps, memory
        shared = make_params(shapes, self.device, workload.param_dtype, workload.grad_dtype)
        for contestant, row in running:
            params = alias(shared, own_gradients=contestant.writes_gradients)
            try:
                optimizer, step = contestant.make(params)
                step()
                row.state_bytes = state_bytes(optimizer)
                if any(p.grad is None for p in params):
                    raise RuntimeError("takes the gradients away, so that later steps do nothing")
                if is_compiled(contestant) and self.has_loops:
                    memory = of_step(optimizer, step, params) | memory
                if profiled:
                    profile = profile_step(step, self.device)
                    row.temporary_bytes, row.launches = profile.temporary_bytes, profile.launches
            except Exception as error:  # out of memory, say; the others go on without it
                row.status, row.reason = "failed", describe(error)
                continue
            steps[contestant.name] = step
        return steps, memory

    def _graphs(
        self, workload: Workload, rows: list[Row], field_: list[Contestant], steps: dict[str, Step]
    ) -> list[Row]:
        """The same steps as CUDA graphs; after the others, for a capture makes later steps slower."""
        graphs: list[Row] = []
        replays: dict[str, Step] = {}
        for contestant, row in zip(field_, rows, strict=True):
            if contestant.capturable and contestant.name in steps:
                graph = replace(row, name=f"{row.name} graph", rounds=0, median=None, p20=None)
                graph.p80 = graph.host = graph.ratio_to_baseline = None
                graphs.append(graph)
                try:
                    replays[graph.name] = captured(steps[contestant.name])
                except Exception as error:
                    graph.status, graph.reason = "failed", describe(error)
        if replays:
            found = self._ceilings_of((), rows[0].n_params, {})
            rounds = self.turns({**runs(found), **replays}, "graph")
            origins = [c for c in field_ if c.capturable and c.name in steps]
            self._relate("step", workload, graphs, origins, rounds, found)
        baseline = next((r.median for r in rows if r.name == BASELINE), None)
        for graph in graphs:
            if graph.median and baseline:
                graph.ratio_to_baseline = graph.median / baseline
        return graphs

    def _relate(
        self,
        section: str,
        workload: Workload,
        rows: list[Row],
        field_: list[Contestant],
        rounds: dict[str, list[float]],
        found: dict[str, Ceiling],
    ) -> list[Row]:
        """Give ``rows`` their times, and hold them against the ceilings that took part: the rows of these."""
        measured = ceiling_rows(section, workload.name, found, rounds, self.arena.numel())
        for row, contestant in zip(rows, field_, strict=True):
            if row.name in rounds:
                row.set_times(rounds[row.name])
                passes_ = self.check(contestant, workload).passes
                hold_against(row, rounds[row.name], passes_, found, rounds, self.has_loops)
        relate(rows)
        return measured

    def _free(self) -> None:
        """Before the next tensors are made."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _checked_row(self, section: str, workload: Workload, shapes: Shapes, c: Contestant) -> Row:
        return checked_row(section, workload, shapes, c, self.check(c, workload))
