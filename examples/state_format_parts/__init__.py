"""The parts of state_formats.py."""
