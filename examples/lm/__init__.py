"""The parts of ``examples/train_lm.py``: settings, text, model, optimizers, training loop, report."""
