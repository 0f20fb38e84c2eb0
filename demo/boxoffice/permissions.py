from rest_framework.permissions import SAFE_METHODS, BasePermission


class ManagesShow(BasePermission):
    """Everybody may look; only who manages a show may change it."""

    message = "Only those who manage the show may do this."

    async def has_object_permission(self, request, view, show):
        return request.method in SAFE_METHODS or await show.managers.acontains(request.user)
