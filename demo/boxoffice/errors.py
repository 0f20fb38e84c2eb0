from rest_framework.exceptions import APIException


class Conflict(APIException):
    status_code = 409
    default_code = "conflict"


class ServiceFailed(APIException):
    status_code = 502
    default_detail = "A service that is needed for this has no answer."
    default_code = "service_failed"
