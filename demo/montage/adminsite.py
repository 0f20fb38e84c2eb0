"""An admin site that brings its own `request.user`.

settings.py says why AuthenticationMiddleware is not in MIDDLEWARE. Two ways lead into an admin
site: `admin_view`, through which it wraps every view of its own and of its model admins, and
`login`, which alone goes without. Both are wrapped here, outermost, so that the user is there
before the permission is asked for. CSRF protection stays what it is: the middleware of the
whole site, and `csrf_protect` inside `admin_view`.
"""

from django.contrib.admin import AdminSite
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.utils.decorators import decorator_from_middleware, method_decorator

with_user = decorator_from_middleware(AuthenticationMiddleware)


class MontageAdminSite(AdminSite):
    site_header = "Montage: the stage door"
    site_title = "Montage"
    index_title = "Boards and people"

    def admin_view(self, view, cacheable=False):
        return with_user(super().admin_view(view, cacheable))

    @method_decorator(with_user)
    def login(self, request, extra_context=None):
        return super().login(request, extra_context)
