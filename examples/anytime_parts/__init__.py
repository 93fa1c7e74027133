"""The parts of anytime.py."""
