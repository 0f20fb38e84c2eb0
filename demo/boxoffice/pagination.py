from rest_framework.pagination import CursorPagination


class Pages(CursorPagination):
    """Pages that stay as they are while others book. Views have an `ordering`."""

    page_size = 10
    page_size_query_param = "page_size"
    max_page_size = 100

    def get_ordering(self, request, queryset, view):
        """Ends with the key: what is otherwise equal has an order too, there and back."""
        return (*super().get_ordering(request, queryset, view), "pk")
