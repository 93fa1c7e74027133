"""``python -m sfplus_kernels``: see ``cli``."""

from sfplus_kernels.cli.report import main

if __name__ == "__main__":
    main()
