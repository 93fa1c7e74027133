"""What ``python -m sfplus_kernels`` runs, one command a file."""
