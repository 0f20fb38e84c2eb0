"""What `manage.py greenroom` says, and what holds views on threads under other settings: JSON."""

import io
import json

from allauth.account.adapter import DefaultAccountAdapter
from corsheaders.signals import check_request_enabled
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.test import override_settings
from whitenoise.middleware import WhiteNoiseMiddleware

from greenroom.application import AsyncDjangoApplication
from greenroom.handler import Handler


class Renames(DefaultAccountAdapter):
    def clean_username(self, username, shallow=False):
        return username.lower()


class Telephones(DefaultAccountAdapter):
    def get_phone(self, user):
        raise AssertionError("it would ask somebody")


class Own(WhiteNoiseMiddleware):
    pass


def receiver(sender, **kwargs):
    return False


def own_middleware():
    return [f"{__name__}.Own" if "whitenoise" in name else name for name in settings.MIDDLEWARE]


def cases():
    phones = {"ACCOUNT_ADAPTER": f"{__name__}.Telephones"}
    return {
        "as they are": {},
        "DEBUG": {"DEBUG": True},
        "DEBUG_TOOLBAR_CONFIG": {
            "DEBUG_TOOLBAR_CONFIG": {"SHOW_TOOLBAR_CALLBACK": f"{__name__}.receiver"}
        },
        "ACCOUNT_ADAPTER": {"ACCOUNT_ADAPTER": f"{__name__}.Renames"},
        "ACCOUNT_ADAPTER get_phone": phones,
        "ACCOUNT_ADAPTER named": {
            **phones,
            "GREENROOM": {"LOOP_SAFE": [phones["ACCOUNT_ADAPTER"]]},
        },
        "a subclass": {"MIDDLEWARE": own_middleware()},
    }


def held():
    chain = Handler(AsyncDjangoApplication)
    chain.load_middleware()
    return chain.judge.surroundings()


class Command(BaseCommand):
    def handle(self, **options):
        said = io.StringIO()
        call_command("greenroom", "--json", stdout=said)
        found = {}
        for name, given in cases().items():
            with override_settings(**given):
                found[name] = held()
        check_request_enabled.connect(receiver)
        found["check_request_enabled"] = held()
        answer = {"manage.py greenroom": json.loads(said.getvalue()), "held": found}
        self.stdout.write(json.dumps(answer))
