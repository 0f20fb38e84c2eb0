"""``manage.py greenroom``: each URL pattern, where it runs, and what holds it there.

Also what each coroutine view uses that plain Django lacks, as far as that can be read
(`greenroom.portability`), and the module-level locks and thread-locals of the project
and its apps, which matter where code on the loop queries while it uses them.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from greenroom import handler, locks, user_code, warm
from greenroom.application import AsyncDjangoApplication
from greenroom.placement import views
from greenroom.portability import Needs, needs_of


class Command(BaseCommand):
    help = "Print each URL pattern with its placement, and for a thread what holds it there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON, for other programs")

    def handle(self, *args: Any, **options: Any) -> None:
        warm.up()
        chain = handler.Handler(AsyncDjangoApplication)
        chain.load_middleware()
        found_views = list(views())
        rows = [(route, name, chain.judge.place(view)) for route, name, view in found_views]
        needs = [needs_of(view) for _, _, view in found_views]
        held = chain.judge.surroundings()
        found = list(locks.find())
        slow = user_code.slow_caches()
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
                        "held_on_threads_by": held,
                        "caches_on_threads": slow,
                        "views": [
                            {
                                "route": route,
                                "name": name,
                                "coroutine": placement.coroutine,
                                "placement": "loop" if placement.on_loop else "thread",
                                "reason": placement.reason,
                                "needs": each.places,
                                "unread": each.unread,
                            }
                            for (route, name, placement), each in zip(rows, needs, strict=True)
                        ],
                        "locks": [{"name": each.name, "kind": each.kind} for each in found],
                    },
                    indent=2,
                )
            )
            return
        width = max((len(route) for route, _, _ in rows), default=0)
        for route, _, placement in rows:
            where = "loop" if placement.on_loop else "thread"
            # What holds all of them is said once, below.
            reason = "" if held and placement.coroutine else placement.reason
            self.stdout.write(f"{where:6} /{route:{width}}  {reason}".rstrip())
        for reason in held:
            self.stdout.write(f"Every coroutine view is on a thread: {reason}.")
        for alias, reason in slow.items():
            self.stdout.write(f"Calls of the cache {alias!r} are made on a thread: it {reason}.")
        self._say_needs([(row[0], each) for row, each in zip(rows, needs, strict=True)], rows)
        if found:
            self.stdout.write("Locks and thread-locals of modules (see docs/database.md):")
            for each in found:
                self.stdout.write(f"  {each.kind:20} {each.name}")

    def _say_needs(self, needs: list[tuple[str, Needs]], rows: list[Any]) -> None:
        coroutines = sum(placement.coroutine for _, _, placement in rows)
        if not coroutines:
            return
        some = [(route, each) for route, each in needs if each.places or each.unread]
        if some:
            self.stdout.write("Used, and plain Django lacks it (as far as the source tells):")
        for route, each in some:
            said = [
                f"{what} ({', '.join(places)})" if places else what
                for what, places in each.places.items()
            ]
            said += [f"not read: {reason}" for reason in each.unread]
            self.stdout.write(f"  /{route}  {'; '.join(said)}")
        self.stdout.write(
            f"{coroutines - len(some)} of {coroutines} coroutine views use none of that. Not seen "
            "are lazy relations, what is passed in or called through variables, other packages."
        )
