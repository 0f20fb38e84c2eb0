"""Settings for Django's own tests: those of its test_sqlite.py, and the databases we are given."""

import json
import os

DATABASES = json.loads(os.environ["GREENROOM_CONFORMANCE_DATABASES"])
SECRET_KEY = "for tests only"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "__main__.Runner"
GREENROOM = {"PLACEMENT": os.environ["GREENROOM_CONFORMANCE_PLACEMENT"]}
