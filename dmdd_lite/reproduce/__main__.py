"""python -m dmdd_lite.reproduce data/mvtec_ad --textures data/dtd/dtd/images --seeds 0 1 2"""

import argparse
import sys
from pathlib import Path

from .plan import parse, plan, problems_of, stale, unfinished
from .report import conclude
from .run import CannotStart, Job, environments, exit_status, local_client, remote_client, run_jobs


def work(options: argparse.Namespace, jobs: list[Job], done: list[tuple[Job, dict]]) -> dict[str, str]:
    """Check what the jobs need, here or on every worker of the scheduler, and that the data of those that are
    done is what it was, here or on one of the workers; then run the jobs; the failures by name. Raises
    CannotStart before anything has run."""
    print(f"checking the data and the teacher of {len(jobs) + len(done)} runs ...", flush=True)
    if options.scheduler:
        with remote_client(options.scheduler) as client:
            problems = client.submit(stale, done, pure=False).result()
            found = client.run(problems_of, jobs)
            problems += [f"{text} (worker {at})" for at, texts in found.items() for text in texts]
            if problems:
                raise CannotStart(problems)
            return run_jobs(client, jobs)
    if problems := list(dict.fromkeys(stale(done) + problems_of(jobs))):
        raise CannotStart(problems)
    if not jobs:
        return {}
    with local_client(environments(options.jobs, options.device), options.dashboard) as client:
        return run_jobs(client, jobs)


def reproduce(options: argparse.Namespace) -> dict[str, str]:
    """All of it; the failures by name. Raises CannotStart, and OSError if the table cannot be written."""
    jobs = plan(options)
    (left, done), folder = unfinished(jobs), Path(jobs[0].parameters["results_dir"])
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} finished before; logs in {folder / 'logs'}", flush=True)
    failed = work(options, left, done)
    print(f"\n{conclude(folder, failed)}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return exit_status(lambda: reproduce(options))


if __name__ == "__main__":
    sys.exit(main())
