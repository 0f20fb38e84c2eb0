"""A hasher that takes about three tenths of a second."""

from __future__ import annotations

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class Slow(PBKDF2PasswordHasher):
    iterations = 800_000
