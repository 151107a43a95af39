"""The command of the study; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import hidden_beside
from mmrlhf_jax.progress import say
from mmrlhf_jax.quickstart.pipeline import usable_cores
from mmrlhf_jax.sole_writer import held
from tests.benchmarks import drs_study
from tests.benchmarks.drs_study.report import write_report
from tests.benchmarks.drs_study.sizes import SMALL_STUDY, WHOLE
from tests.benchmarks.drs_study.study import claim, make_start, run_cells


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.drs_study",
        description=drs_study.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="directory of the study; an unfinished one is continued")
    parser.add_argument("--small", action="store_true", help="two levels, two seeds, five variants, fewer steps")
    parser.add_argument("--workers", type=int, help="processes, each on a core of its own; default: 2, if there are two cores")
    parser.add_argument("--report", action="store_true", help="only write the report of the seeds that are complete")
    options = parser.parse_args()
    options.out = options.out.resolve()  # one lock for one directory, however it is written
    most = len(usable_cores())
    workers = min(2, most) if options.workers is None else options.workers
    if not 1 <= workers <= most:
        parser.error(f"--workers {workers}: from 1 to {most}, the number of cores, are possible")
    sizes, started = SMALL_STUDY if options.small else WHOLE, time.monotonic()
    try:
        if options.report:
            claim(options.out, sizes, reads_only=True)
        else:
            with held(options.out, hidden_beside(options.out, "studying"), "is running a study in it"):
                claim(options.out, sizes)
                make_start(options.out, sizes)
                run_cells(options.out, sizes, workers)
        write_report(options.out, sizes)
    except UserError as error:
        sys.exit(str(error))
    say(f"this call took {(time.monotonic() - started) / 60:.1f} minutes; look at {options.out / 'report.html'}")


if __name__ == "__main__":
    main()
