"""What is kept of a parameter and of a run, in the optimizer's own containers."""
