from rest_framework.renderers import BrowsableAPIRenderer

from greenroom import loop_safe

POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@loop_safe  # it would be rendered on a thread in any case
class BrowsablePages(BrowsableAPIRenderer):
    """The site's policy forbids inline styles, of which these pages have some."""

    def render(self, data, accepted_media_type=None, renderer_context=None):
        renderer_context["response"]["Content-Security-Policy"] = POLICY
        return super().render(data, accepted_media_type, renderer_context)
