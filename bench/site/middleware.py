class Stamp:
    """Stands for a package's middleware: synchronous, and nothing that a server knows of."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["X-Stamp"] = "seen"
        return response
