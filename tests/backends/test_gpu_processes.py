"""What takes a process of its own on a GPU: faults, forks, contexts, and guards around every tensor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from gpu_support import in_a_process
from support import ROOT

pytestmark = pytest.mark.gpu

STEPPED = ["SGDScheduleFree", "SGD", "AdamW", "AdamC"]
N_STEPPED = len(STEPPED)
STEP_EACH = f"""
each = []
for make in ({", ".join(f"s.{name}" for name in STEPPED)}):
    p = torch.nn.Parameter(torch.ones(9, device='cuda')); p.grad = torch.ones_like(p)
    each.append(make([p], lr=0.1, backend='cuda')); each[-1].train(); each[-1].step()
"""

EVERY_KERNEL = ROOT / "tools" / "every_kernel.py"


def test_every_kernel_runs_and_touches_nothing_beside_its_tensors() -> None:
    """All that there are of full state, for the architecture that is here."""
    done = in_a_process(
        f"import runpy, sys; sys.argv = ['x']; runpy.run_path({str(EVERY_KERNEL)!r}, run_name='__main__')"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "guards touched: 0" in done.stdout


def test_a_fault_of_another_kernel_is_not_blamed_on_ours() -> None:
    done = in_a_process(
        "import torch, sfplus_kernels as s\n"
        f"{STEP_EACH}"
        "torch.cuda.synchronize()\n"
        "torch.zeros(1, device='cuda')[torch.tensor([5], device='cuda')]\n"
        "import time; time.sleep(1)\n"
        "for o in each:\n"
        "    try:\n        o.step()\n"
        "    except RuntimeError as error:\n        print(error)\n"
    )
    said = done.stdout.count("an earlier operation on device 0 failed")
    assert said == N_STEPPED, done.stdout + done.stderr


def test_a_fork_after_a_step_raises_and_does_not_hang() -> None:
    done = in_a_process(
        "import os, torch, sfplus_kernels as s\n"
        f"{STEP_EACH}"
        "torch.cuda.synchronize()\n"
        "for o in each:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try:\n            o.step()\n"
        "        except RuntimeError:\n            os._exit(7)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.stdout.split() == ["7"] * N_STEPPED, done.stdout + done.stderr


def test_two_processes_on_one_gpu() -> None:
    """By gloo, since NCCL refuses two ranks on one GPU: every process takes the same step."""
    port = 29000 + os.getpid() % 1000
    code = (
        "import os, torch, torch.distributed as d, sfplus_kernels as s\n"
        f"at = 'tcp://127.0.0.1:{port}'\n"
        "d.init_process_group('gloo', init_method=at, rank=int(os.environ['R']), world_size=2)\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda'))\n"
        "p.grad = torch.full_like(p, 0.5)\n"
        "o = s.AdamCScheduleFreePlus([p], backend='cuda'); o.train()\n"
        "o.step(loss=torch.tensor(1.0 + int(os.environ['R']), device='cuda'))\n"
        "print(o.metrics()['function_value'], p.detach().double().sum().item())\n"
        "d.destroy_process_group()\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "R": str(rank),
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            },
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=300)[0].split() for process in running]
    assert said[0] == said[1]
    assert said[0][0] == "1.5"  # the mean of the losses


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_no_context_is_made_on_the_current_device() -> None:
    """Half a GB of somebody else's GPU, in every process that trains on another one."""
    done = in_a_process(
        "import torch, sfplus_kernels as s\n"
        "before = torch._C._cuda_hasPrimaryContext(0)\n"
        "p = torch.nn.Parameter(torch.ones(9, device='cuda:1')); p.grad = torch.ones_like(p)\n"
        "o = s.SGDScheduleFree([p], lr=0.1, backend='cuda'); o.train(); o.step()\n"
        "o = s.AdamW([p], lr=0.1, backend='cuda'); o.step()\n"
        "print(before, torch._C._cuda_hasPrimaryContext(0))\n"
    )
    assert done.stdout.split() == ["False", "False"], done.stdout + done.stderr
