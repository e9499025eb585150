"""Seeds without end: `python -m tests.simulation.soak --minutes 10`, or one of them: `--seed 1234`.

A seed that fails prints itself and its shrunk story. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import count

from rayscheduler.simulation.seeds import story_of
from rayscheduler.simulation.shrink import failure_of, report, told

FAILURES_AT_MOST = 5
SECONDS_BETWEEN_LINES = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to run (default: 5)")
    parser.add_argument("--first", type=int, default=1_000, help="the first seed (default: 1000)")
    parser.add_argument("--seed", type=int, help="run this seed alone and tell what happened")
    options = parser.parse_args()
    if options.seed is not None:
        wrong = report(options.seed)
        print(wrong or f"seed {options.seed} passes")
        return 1 if wrong else 0
    return soak(options.first, options.minutes * 60)


def soak(first: int, duration_s: float) -> int:
    started = said = time.monotonic()
    failures = 0
    for seed in count(first):
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES or now - started >= duration_s:
            said = now
            done = seed - first
            print(f"{done} seeds, {done / (now - started):.0f}/s, {failures} failed", flush=True)
        if now - started >= duration_s or failures >= FAILURES_AT_MOST:
            break
        failure = failure_of(story_of(seed))
        if failure is not None:
            failures += 1
            print(told(failure), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
