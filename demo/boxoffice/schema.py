"""What drf-spectacular does not say by itself: the errors of each operation."""

SCHEMAS = {
    "Problem": {
        "type": "object",
        "properties": {"detail": {"type": "string"}},
        "required": ["detail"],
    },
    # Messages by the names of the fields, nested as the fields are; or of the whole.
    "Invalid": {
        "anyOf": [
            {"type": "object", "additionalProperties": {}},
            {"type": "array", "items": {"type": "string"}},
        ]
    },
}

ERRORS = {
    "400": ("What was sent is not valid.", "Invalid"),
    "401": ("Who asks is not known.", "Problem"),
    "403": ("Who asks may not do this.", "Problem"),
    "404": ("There is no such thing, or it is somebody else's.", "Problem"),
    "409": ("Not now: it is sold out, or was booked.", "Problem"),
    "415": ("It was sent in a format that is not known.", "Problem"),
    "429": ("Too often: try again after `Retry-After` seconds.", "Problem"),
    "502": ("A service that is needed has no answer.", "Problem"),
}


def add_errors(result, generator, request, public):
    """A hook of drf-spectacular."""
    result["components"]["schemas"] |= SCHEMAS
    for path, methods in result["paths"].items():
        for method, operation in methods.items():
            for status in _errors(path, method, operation):
                description, name = ERRORS[status]
                schema = {"$ref": f"#/components/schemas/{name}"}
                operation["responses"][status] = {
                    "description": description,
                    "content": {"application/json": {"schema": schema}},
                }
    return result


def _errors(path, method, operation):
    yield "401"
    if "security" in operation:
        yield "403"
    where = {parameter["in"] for parameter in operation.get("parameters", ())}
    if where:
        yield "404"  # a cursor may be one of nowhere
    if "query" in where or "requestBody" in operation:
        yield "400"
    if "requestBody" in operation:
        yield "415"
    if path.endswith("/book/"):
        yield from ("409", "429", "502")
    if path.endswith("/shows/{id}/") and method == "delete":
        yield "409"
