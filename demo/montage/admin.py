from django.contrib import admin, messages
from django.db import transaction

from .models import Board, Tile

admin.site.site_header = "Montage: the stage door"
admin.site.site_title = "Montage"
admin.site.index_title = "Boards and people"


class TileInline(admin.TabularInline):
    model = Tile
    extra = 0


@admin.register(Board)
class BoardAdmin(admin.ModelAdmin):
    list_display = ["name", "slug", "is_default", "services"]
    prepopulated_fields = {"slug": ["name"]}
    readonly_fields = ["is_default"]
    inlines = [TileInline]
    actions = ["make_default"]

    def get_queryset(self, request):
        return super().get_queryset(request).prefetch_related("tiles")

    @admin.display
    def services(self, board):
        return ", ".join(str(tile) for tile in board.tiles.all())

    @admin.action(description="Make this the default board", permissions=["change"])
    def make_default(self, request, boards):
        if boards.count() != 1:
            self.message_user(request, "Choose one board.", messages.ERROR)
            return
        board = boards.get()
        with transaction.atomic():
            Board.objects.filter(is_default=True).update(is_default=False)
            Board.objects.filter(pk=board.pk).update(is_default=True)
        self.message_user(request, f"“{board}” is what the montage shows now.", messages.SUCCESS)
