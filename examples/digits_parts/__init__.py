"""The parts of ``examples/digits.py``: images, model, optimizers, training, report."""
