from datetime import timedelta

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction
from django.utils import timezone

from boxoffice.models import Performance, Show
from montage.models import Board, Tile
from montage.upstreams import SERVICES

BOARDS = {
    "everything": ("Everything", list(SERVICES)),
    "on-the-way": ("On the way", ["weather", "tide", "trains", "air", "bikes"]),
}

SHOWS = {
    "The Harbour Lights": ("A comedy with a ferry in it.", 24),
    "Signal Box": ("Two railwaymen, one winter, no trains.", 18),
    "The Missing Benches": ("The council investigates. With songs.", 12),
}
EVENINGS = 14

USERS = {"demo": "who may do everything", "guest": "who may book seats"}


class Command(BaseCommand):
    help = "Makes boards, shows and two users. What is there already is left as it is."

    @transaction.atomic
    def handle(self, **options):
        for slug, (name, services) in BOARDS.items():
            default = not Board.objects.filter(is_default=True).exists()
            board, made = Board.objects.get_or_create(
                slug=slug, defaults={"name": name, "is_default": default}
            )
            if made:
                Tile.objects.bulk_create(
                    Tile(board=board, service=service, position=10 * place)
                    for place, service in enumerate(services, 1)
                )
            self.stdout.write(f"Board “{board}” {'made' if made else 'is there'}.")

        User = get_user_model()
        for name, what in USERS.items():
            if User.objects.filter(username=name).exists():
                self.stdout.write(f"User “{name}” is there.")
                continue
            make = User.objects.create_superuser if name == "demo" else User.objects.create_user
            make(name, password=name)
            self.stdout.write(f"User “{name}”, {what}, made with the password “{name}”.")

        first = timezone.now().replace(hour=19, minute=30, second=0, microsecond=0)
        for title, (about, price) in SHOWS.items():
            show, made = Show.objects.get_or_create(title=title, defaults={"about": about})
            if made:
                show.managers.add(User.objects.get(username="demo"))
                Performance.objects.bulk_create(
                    Performance(
                        show=show, starts_at=first + timedelta(days=day), price=price, seats=120
                    )
                    for day in range(1, EVENINGS + 1)
                )
            self.stdout.write(f"Show “{title}” {'made' if made else 'is there'}.")

        self.stderr.write(
            self.style.WARNING(
                "WARNING: demo/demo may do everything in /admin/. That is for trying this out on"
                " your own machine only; never let the site be reached from elsewhere like this."
            )
        )
