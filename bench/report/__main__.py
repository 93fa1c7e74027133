"""python -m bench.report FOLDER: draw the plots and the report of a run anew."""

import sys
from pathlib import Path

from bench.record.rows import RESULTS, read
from bench.report import page, plots


def main(folder: Path) -> None:
    run = read(folder / RESULTS)
    plots.draw(run, folder)
    print(page.write(run, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
