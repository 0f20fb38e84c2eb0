"""Make docs/benchmarks.md and its plots from what was measured.

    bench/report.py                     # from bench/results/published.json
    bench/report.py --publish           # what was measured last becomes that file first
    bench/report.py --latest            # print the page of what was measured last; write nothing
    bench/report.py results.json        # … of another file

Published are the scenarios that were measured last; those that were published before, and not
measured since, stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suite import plots, results, tables

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--latest", action="store_true")
    options = parser.parse_args()
    profiles = results.load(results.PROFILES)
    file = results.LATEST if options.latest else options.file
    if file is not None:
        print(tables.document(results.load(file), profiles=profiles), end="")
        return 0
    scenarios = results.load(results.PUBLISHED)
    if options.publish:
        scenarios |= results.load(results.LATEST)
        results.save(results.PUBLISHED, scenarios)
    if not scenarios:
        sys.exit(f"There is no {results.PUBLISHED}: measure, and then use --publish.")
    page = DOCS / "benchmarks.md"
    page.write_text(tables.document(scenarios, plots.PLOTS, profiles))
    for path in [page, *plots.draw(scenarios, DOCS)]:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
