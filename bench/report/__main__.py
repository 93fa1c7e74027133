"""python -m bench.report FOLDER: draw the plots and the report of a run anew."""

import argparse
from pathlib import Path

from bench.record.rows import RESULTS, read
from bench.report import page, plots


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description="Draw the plots and the report of a run anew."
    )
    parser.add_argument("folder", type=Path, help=f"the run's, with {RESULTS} in it")
    folder: Path = parser.parse_args().folder
    if not (folder / RESULTS).is_file():
        parser.error(f"there is no {folder / RESULTS}; see bench/results for runs")
    run = read(folder / RESULTS)
    plots.draw(run, folder)
    print(page.write(run, folder))


if __name__ == "__main__":
    main()
