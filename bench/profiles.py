"""Show where the processor's time of a request goes: by package, in µs.

    bench/profiles.py                                          # what the page shows
    bench/profiles.py hello-plain/gthread:plain@8 --seconds 4  # a scenario, a row, its threads

Kept in bench/results/profiles.json, of which bench/report.py makes the table of docs/benchmarks.md.
Needs py-spy, which must be allowed to trace the processes of this user.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite import profile, results
from suite.scenarios import SCENARIOS
from suite.servers import Invalid, prepare
from suite.services import Services

SHOWN = (
    "hello-coroutine/greenroom:coroutine@4",
    "hello-plain/greenroom:plain@8",
    "hello-plain/granian-wsgi:plain@8",
    "queries-1/greenroom:coroutine@4",
    "queries-20/greenroom:coroutine@4",
    "queries-20/greenroom:plain@8",
    "queries-20/gthread:plain@8",
    "list/greenroom:coroutine@4",
    "upload/greenroom:plain@8",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=SHOWN, metavar="scenario/row@threads")
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    for each in options.rows:
        scenario, row, _ = parts(each)
        if scenario not in SCENARIOS or row not in [one.key for one in SCENARIOS[scenario].rows]:
            known = ", ".join(one.key for one in getattr(SCENARIOS.get(scenario), "rows", ()))
            parser.error(f"There is no {each}. Known {known or ', '.join(SCENARIOS)}")
    prepare()
    failed = 0
    with Services() as services:
        for each in options.rows:
            scenario, row, threads = parts(each)
            try:
                record = profile.profile(services, scenario, row, threads, options.seconds)
            except Invalid as exc:
                print(f"{each}: {exc}", file=sys.stderr)
                failed += 1
                continue
            results.add(results.PROFILES, f"{scenario}/{row}", record)
            print("\n".join([*profile.table([record]), ""]), flush=True)
    return 1 if failed else 0


def parts(text: str) -> tuple[str, str, int]:
    scenario, _, rest = text.partition("/")
    row, _, threads = rest.partition("@")
    return scenario, row, int(threads or 8)


if __name__ == "__main__":
    sys.exit(main())
