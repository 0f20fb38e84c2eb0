from django.contrib import admin

from .models import Booking, Performance, Show


class PerformanceInline(admin.TabularInline):
    model = Performance
    readonly_fields = ["sold"]
    extra = 0


@admin.register(Show)
class ShowAdmin(admin.ModelAdmin):
    list_display = ["title", "poster"]
    search_fields = ["title"]
    filter_horizontal = ["managers"]
    readonly_fields = ["poster"]
    inlines = [PerformanceInline]


@admin.register(Booking)
class BookingAdmin(admin.ModelAdmin):
    """To look at: whoever changed the seats here would have to count the sold ones too."""

    list_display = ["reference", "performance", "customer", "seats", "total", "currency"]
    list_select_related = ["performance__show", "customer"]
    list_filter = ["performance__show"]
    date_hierarchy = "booked_at"

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, booking=None):
        return False

    def has_delete_permission(self, request, booking=None):
        return False
