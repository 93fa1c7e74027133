"""What a run may take."""

CPU_MEMORY = 7.4e9
"""Bytes for the tensors of one workload: with the arena and Python a run stays within 11 GB."""

SECONDS = {
    "ceiling": 6.0,
    "all": 45.0,
    "step": 12.0,
    "graph": 4.0,
    "launch": 2.0,
    "pass": 6.0,
    "host": 8.0,
    "pairs": 10.0,
    "busy": 8.0,
    "options": 8.0,
    "scaling": 2.0,
}
"""What is spent on the rounds of one section (about: there are at least seven turns)."""

LATE = 12.0
"""A run with an end is late where there are fewer seconds for each part that is left."""
AGAIN = 2
"""Times that a step is measured longer where it seems to be quicker than its ceiling."""
