"""How it is measured: right before timed, in turns, a whole run."""
