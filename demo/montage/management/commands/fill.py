from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from montage.models import Board, Tile
from montage.upstreams import SERVICES

BOARDS = {
    "everything": ("Everything", list(SERVICES)),
    "on-the-way": ("On the way", ["weather", "tide", "trains", "air", "bikes"]),
}


class Command(BaseCommand):
    help = "Makes the boards and the demo user. What is there already is left as it is."

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
        if User.objects.filter(username="demo").exists():
            self.stdout.write("User “demo” is there.")
        else:
            User.objects.create_superuser("demo", password="demo")
            self.stdout.write("User “demo” made, with the password “demo”.")
        self.stderr.write(
            self.style.WARNING(
                "WARNING: demo/demo may do everything in /admin/. That is for trying this out on"
                " your own machine only; never let the site be reached from elsewhere like this."
            )
        )
