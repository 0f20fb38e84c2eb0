from rest_framework.pagination import CursorPagination


class Pages(CursorPagination):
    """Pages that stay as they are while others book. Views have an `ordering`."""

    page_size = 10
    page_size_query_param = "page_size"
    max_page_size = 100
