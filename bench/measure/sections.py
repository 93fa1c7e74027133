"""The sections of a run: ceilings, whole steps, passes, host time, scaling. Each returns rows."""

from __future__ import annotations

from bench.contestants.contestant import OTHERS, Contestant, is_compiled
from bench.contestants.faked import can_be_faked, with_faked_kernels
from bench.contestants.moving import with_moving_gradients
from bench.contestants.options import with_options
from bench.measure.busy import busy_thread
from bench.measure.ceilings import READ, SHAPES, Passes, loops
from bench.measure.held import ceiling_rows, hold_against, runs
from bench.measure.passes import Pass, passes
from bench.measure.race import Races
from bench.measure.room import present
from bench.record.rows import BASELINE, Row, relate
from bench.work.memory import Memory
from bench.work.workloads import Shapes, Workload, make_params, n_params


class Bench(Races):
    """The sections, one method each."""

    def measure_ceilings(self) -> list[Row]:
        found = dict(self.ceilings)
        if self.has_loops:
            found |= loops(self.arena, [(arrays,) for arrays in SHAPES], self.arena.numel())
        rounds = self.turns(runs(found), "ceiling")
        return ceiling_rows("ceiling", "", found, rounds, self.arena.numel())

    def measure_steps(self, workload: Workload, *, first: bool = False) -> list[Row]:
        """All contestants of a workload; ``first``: the one in which the slow and the absent appear."""
        field_ = [c for c in self.contestants if c.is_in(workload) or (first and c.absent)]
        field_ = [c for c in field_ if first or not c.slow_to_make]
        kind = "all" if workload.tier == "all" else "step"
        profiled = first or self.device.type == "cuda"
        return self._race("step", workload, workload.shapes(), field_, kind, profiled=profiled)

    def measure_host(self) -> list[Row]:
        """A step of next to no work: what Python and the launches cost."""
        workload = self._small_tensors()
        field_ = [c for c in present(self.contestants, workload) if not c.slow_to_make]
        field_ += [with_moving_gradients(c) for c in field_ if c.tier == "fused"]
        return self._race("host", workload, workload.shapes(), field_, "host", host=True)

    def measure_host_in_pairs(self) -> list[Row]:
        """The same step after step, each of ours beside the baseline; on the CPU as on a GPU too."""
        workload = self._small_tensors()
        field_ = [c for c in present(self.contestants, workload) if c.tier == "fused" and c.ours]
        field_ += [with_faked_kernels(c) for c in field_ if can_be_faked(c, self.device)]
        field_ += map(with_moving_gradients, list(field_))
        baseline = [c for c in self.contestants if c.name == BASELINE]
        return self._race_in_pairs("pairs", workload, [*baseline, *field_])

    def _small_tensors(self) -> Workload:
        size = 64 if self.device.type == "cuda" else 4
        return Workload("host", f"1,000 tensors of {size}", lambda: [(size,)] * 1000, "all")

    def measure_busy(self, workload: Workload) -> list[Row]:
        """Steps beside one thread of another process that never rests."""
        fused = [c for c in present(self.contestants, workload) if c.tier == "fused"]
        with busy_thread():
            return self._race("busy", workload, workload.shapes(), fused, "busy", host=True)

    def measure_options(self, workload: Workload) -> list[Row]:
        """Steps with rows of a fixed norm, and with the drift monitor, beside those without."""
        fused = [c for c in present(self.contestants, workload) if c.tier == "fused"]
        plain = [c for c in fused if c.ours and "bit" not in c.name.rpartition(" ")[2]]
        field_ = [one for c in plain for one in (c, *with_options(c))]
        return self._race("options", workload, workload.shapes(), field_, "options")

    def measure_scaling(self, section: str, title: str, shapes: Shapes) -> list[Row]:
        """One point of the curves: ``section`` is "size" or "count"."""
        workload = Workload(title, title, lambda: shapes, "fused")
        field_ = [
            c
            for c in self.contestants
            if c.is_in(workload) and (c.ours or "AdamW" in c.name) and not c.absent
        ]
        return self._race(section, workload, shapes, field_, "scaling")

    def measure_passes(self, workload: Workload) -> list[Row]:
        """Each pass of our compiled backends alone, over the tensors of ``workload``."""
        rows: list[Row] = []
        for contestant in filter(is_compiled, self.contestants):
            in_it = contestant.tier != OTHERS and contestant.suits(workload)
            if in_it and self.check(contestant, workload).status == "ok":
                rows += self._alone(contestant, workload)
        return rows

    def _alone(self, contestant: Contestant, workload: Workload) -> list[Row]:
        shapes = workload.shapes()
        params = make_params(shapes, self.device, workload.param_dtype, workload.grad_dtype)
        found = list(passes(contestant, params))
        moving = [p for p in found if p.traffic]
        memory: dict[Passes, tuple[Memory, ...]] = {
            (p.arrays,): (p.memory,) for p in moving if p.memory is not None
        }
        held: dict[str, Passes] = {p.name: (p.arrays,) for p in moving}
        ceilings_ = self._ceilings_of(held.values(), n_params(shapes), memory)
        if not self.has_loops:  # what only reads is compared with what only reads
            ceilings_[READ] = self.ceilings[READ]
        rows = {p.name: self._row_of(p, contestant, workload) for p in found}
        alone = {p.name: p.run for p in found}
        rounds = self.turns_beside(alone, rows, held, ceilings_, "pass")
        measured = ceiling_rows("pass", workload.name, ceilings_, rounds, self.arena.numel())
        for p in found:
            row = rows[p.name]
            row.set_times(rounds[p.name])
            only_reads = p.name == "reduce" and not self.has_loops
            against = {READ: ceilings_[READ]} if only_reads else ceilings_
            hold_against(row, rounds[p.name], (p.arrays,), against, rounds, self.has_loops)
        relate([*rows.values()])
        del found, moving, memory, ceilings_, params, alone
        self._free()
        return [*measured, *rows.values()]

    def _row_of(self, one: Pass, contestant: Contestant, workload: Workload) -> Row:
        row = self._checked_row("pass", workload, workload.shapes(), contestant)
        row.name = f"{contestant.name}: {one.name}"
        row.traffic, row.read, row.counted = one.traffic, one.read, "its arrays"
        row.state_bytes = one.state_bytes
        return row
