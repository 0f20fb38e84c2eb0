"""Measure scenarios; what came out is kept in a file, and shown by report.py.

    bench/run.py                                    # all, some hours
    bench/run.py hello-plain sleep-1s-1000          # these
    bench/run.py 'hello-*' --peers greenroom gthread --rounds 3
    bench/run.py --list                             # what there is, and what it takes
    bench/run.py --resume                           # all that this revision has no figures of yet

Run it with the interpreter of .venvs/bench, which `make bench-environment` makes, on a machine
that has nothing else to do. Ended in the middle, it keeps the scenarios that were complete.
Servers are peers or rows: `--peers gthread` or `--peers gthread:plain`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite import machine, results, tables, turns, wrk
from suite.peers import PEERS
from suite.scenarios import SCENARIOS
from suite.servers import prepare


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", help="names or patterns; all but those by hand")
    parser.add_argument("--peers", nargs="+", help="only these, and Greenroom if it is named")
    parser.add_argument("--rounds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="a few minutes' worth")
    parser.add_argument("--resume", action="store_true", help="only what isn't measured yet")
    parser.add_argument("--out", type=Path, default=results.LATEST)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    chosen = turns.Options(
        rounds=rounds,
        seconds=options.seconds,
        quick=options.quick,
        peers=frozenset(options.peers) if options.peers else None,
    )
    keys = named(options.scenarios, options.quick)
    unknown = {each.partition(":")[0] for each in options.peers or ()} - PEERS.keys()
    if not keys or unknown:
        known = f"scenarios: {', '.join(SCENARIOS)}; peers: {', '.join(PEERS)}"
        parser.error(f"There is no {' or '.join(unknown) or 'such scenario'}. Known {known}")
    if options.resume:
        done = results.load(options.out)
        revision = machine.now()["revision"]
        keys = [
            key
            for key in keys
            if not results.is_done(done.get(key), rounds, revision, options.quick)
        ]
    seconds = {key: turns.estimate(SCENARIOS[key], chosen) for key in keys}
    if options.list:
        for key in keys:
            print(f"{key:22} {minutes(seconds[key])}  {SCENARIOS[key].title}")
        print(f"{'in all':22} {minutes(sum(seconds.values()))}")
        return 0
    if wrk.is_missing():
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    print(f"About {minutes(sum(seconds.values())).strip()} to go.", file=sys.stderr)
    prepare()
    # Servers are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def save(key: str, record: dict[str, object]) -> None:
        results.add(options.out, key, record)
        print("\n".join(tables.of_scenario(key, record)), flush=True)
        left.remove(key)
        remain = minutes(sum(seconds[each] for each in left)).strip()
        print(f"\n({len(left)} scenarios to go, about {remain})\n", file=sys.stderr)

    left = list(keys)
    return 1 if turns.run_all(keys, chosen, save) else 0


def named(patterns: list[str], quick: bool) -> list[str]:
    if not patterns:
        return [
            key for key, each in SCENARIOS.items() if not each.by_hand and (each.quick or not quick)
        ]
    return [key for key in SCENARIOS if any(fnmatch(key, pattern) for pattern in patterns)]


def minutes(seconds: float) -> str:
    return f"{seconds / 60:5.0f} min"


if __name__ == "__main__":
    sys.exit(main())
