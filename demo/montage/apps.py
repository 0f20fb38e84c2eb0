from django.apps import AppConfig
from django.contrib.admin import apps as admin


class MontageConfig(AppConfig):
    name = "montage"
    default = True


class MontageAdminConfig(admin.AdminConfig):
    default_site = "montage.adminsite.MontageAdminSite"
    default = False
