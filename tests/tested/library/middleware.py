def unknown(get_response):
    """Nobody said that it is loop-safe."""

    def middleware(request):
        response = get_response(request)
        response["X-Unknown"] = "seen"
        return response

    return middleware
