from django.apps import AppConfig


class MontageConfig(AppConfig):
    name = "montage"
