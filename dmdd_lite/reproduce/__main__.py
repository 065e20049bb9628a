"""python -m dmdd_lite.reproduce data/mvtec_ad --textures data/dtd/images --seeds 0 1 2"""

import argparse
import sys
from pathlib import Path

from .plan import parse, plan, problems_of, unfinished
from .report import conclude
from .run import CannotStart, Job, environments, exit_status, local_client, remote_client, run_jobs


def work(options: argparse.Namespace, jobs: list[Job]) -> dict[str, str]:
    """Check what the jobs need, here or on every worker of the scheduler, then run them; the failures by
    name. Raises CannotStart before anything has run."""
    print(f"checking the data and the teacher of {len(jobs)} runs ...", flush=True)
    if options.scheduler:
        with remote_client(options.scheduler) as client:
            found = client.run(problems_of, jobs)
            if any(found.values()):
                raise CannotStart([f"{text} (worker {at})" for at, texts in found.items() for text in texts])
            return run_jobs(client, jobs)
    if problems := problems_of(jobs):
        raise CannotStart(problems)
    with local_client(environments(options.jobs, options.device), options.dashboard) as client:
        return run_jobs(client, jobs)


def reproduce(options: argparse.Namespace) -> dict[str, str]:
    """All of it; the failures by name. Raises CannotStart, and OSError if the table cannot be written."""
    jobs = plan(options)
    left, folder = unfinished(jobs), Path(jobs[0].parameters["results_dir"])
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} finished before; logs in {folder / 'logs'}", flush=True)
    failed = work(options, left) if left else {}
    print(f"\n{conclude(folder, failed)}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return exit_status(lambda: reproduce(options))


if __name__ == "__main__":
    sys.exit(main())
