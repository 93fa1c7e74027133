"""Which program of a kernel does what only one may do, and when the others see it.

``tickets_ptr`` names three counters in the memory of a plan (int32), 0 between kernels: a recorded step
replays. No program waits for one that may not have begun.
"""

import triton
import triton.language as tl


@triton.jit
def draws_last(tickets_ptr):
    """Whether this program is the last one to ask: all that the others wrote before is there then."""
    tl.debug_barrier()  # what all threads of the program wrote, before its ticket
    last = tl.atomic_add(tickets_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1
    if last:
        tl.store(tickets_ptr, 0)
    return last


@triton.jit
def draws_first(tickets_ptr):
    """Whether this program is the first one to ask. All of them then call ``meet``."""
    return tl.atomic_add(tickets_ptr, 1, sem="relaxed") == 0


@triton.jit
def meet(first, tickets_ptr):
    """What the ``first`` program wrote is seen by all others, which wait for it: it is running already."""
    tl.debug_barrier()
    if first:
        tl.atomic_xchg(tickets_ptr + 1, 1, sem="release")
    else:
        while tl.atomic_cas(tickets_ptr + 1, 1, 1, sem="acquire") == 0:
            pass
    # all have drawn and seen the mark
    if tl.atomic_add(tickets_ptr + 2, 1, sem="relaxed") == tl.num_programs(0) - 1:
        tl.store(tickets_ptr, 0)
        tl.store(tickets_ptr + 1, 0)
        tl.store(tickets_ptr + 2, 0)
