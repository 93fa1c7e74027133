"""The parts of step_sizes.py."""
