"""The other processes: the one sum of a step, and what this process holds of a tensor."""
