"""``manage.py greenroom``: each URL pattern, where it runs, and what holds it there.

Also the module-level locks and thread-locals of the project and its apps, which
matter where code on the loop queries while it uses them.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from greenroom import handler, locks, warm
from greenroom.application import AsyncDjangoApplication
from greenroom.placement import views


class Command(BaseCommand):
    help = "Print each URL pattern with its placement, and for a thread what holds it there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON, for other programs")

    def handle(self, *args: Any, **options: Any) -> None:
        warm.up()
        chain = handler.Handler(AsyncDjangoApplication)
        chain.load_middleware()
        rows = [(route, name, chain.judge.place(view)) for route, name, view in views()]
        held = chain.judge.surroundings()
        found = list(locks.find())
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
                        "held_on_threads_by": held,
                        "views": [
                            {
                                "route": route,
                                "name": name,
                                "coroutine": placement.coroutine,
                                "placement": "loop" if placement.on_loop else "thread",
                                "reason": placement.reason,
                            }
                            for route, name, placement in rows
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
        if found:
            self.stdout.write("Locks and thread-locals of modules (see docs/database.md):")
            for each in found:
                self.stdout.write(f"  {each.kind:20} {each.name}")
