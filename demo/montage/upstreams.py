"""A dozen services that exist to be slow: each waits, always equally long, and answers JSON.

They stand for other people's servers. Their answers are made up, and always the same.
"""

import asyncio
import math
import random
from dataclasses import dataclass

from django.http import Http404, JsonResponse


@dataclass(frozen=True)
class Service:
    name: str
    label: str
    latency: float  # seconds
    wide: bool = False  # takes two columns of a board

    @property
    def template(self):
        return f"montage/tiles/{self.name}.html"


SERVICES = {
    service.name: service
    for service in [
        Service("weather", "Weather", 0.45),
        Service("tide", "Tide", 0.8),
        Service("picture", "Picture of the day", 1.05, wide=True),
        Service("headlines", "Headlines", 1.2, wide=True),
        Service("sun", "Daylight", 0.5),
        Service("air", "Air quality", 0.6),
        Service("currency", "Currency", 0.2),
        Service("quote", "A line", 0.35),
        Service("trains", "Departures", 0.9, wide=True),
        Service("bikes", "Bicycles", 0.75),
        Service("power", "Electricity", 1.0),
        Service("stage", "Backstage tonight", 0.3, wide=True),
    ]
}


async def upstream(request, name):
    """`?fail` answers 503 after half the time, `?slow` takes ten seconds longer."""
    if name not in SERVICES:
        raise Http404(f"There is no service {name!r}.")
    latency = SERVICES[name].latency
    if "fail" in request.GET:
        await asyncio.sleep(latency / 2)
        return JsonResponse({"error": "out of order"}, status=503)
    await asyncio.sleep(latency + 10 * ("slow" in request.GET))
    return JsonResponse({"service": name, "latency": latency, "data": _DATA[name]})


def _hills():
    """Four ridges, each a polyline of a 320 x 90 picture."""
    chance = random.Random("montage")
    ridges = []
    for depth in range(4):
        base, height = 46 + 11 * depth, 15 - 2.5 * depth
        waves = [(chance.uniform(0.01, 0.035), chance.uniform(0, 6.3)) for _ in range(3)]
        points = [
            (x, round(base + height * sum(math.sin(x * f + p) for f, p in waves) / 2, 1))
            for x in range(0, 321, 8)
        ]
        ridges.append(" ".join(f"{x},{y}" for x, y in points))
    return ridges


def _tide():
    points = [round(24 - 16 * math.sin(x / 100 * 4 * math.pi + 0.6), 1) for x in range(0, 101, 2)]
    return " ".join(f"{2 * i},{y}" for i, y in enumerate(points))


_DATA = {
    "weather": {"degrees": 14, "sky": "Sunny spells", "wind": "south-west, 4 m/s"},
    "tide": {"next": "High water", "at": "15:40", "metres": 3.2, "curve": _tide()},
    "picture": {"ridges": _hills(), "caption": "The hills behind the harbour, early"},
    "headlines": {
        "items": [
            "Ferry to run through the night from May",
            "Old signal box reopens as a reading room",
            "Council finds the missing benches",
        ]
    },
    "sun": {"rise": "06:12", "set": "20:31", "now": [66, 16.6]},
    "air": {"index": 28, "word": "Good"},
    "currency": {"rates": [["EUR", "1.000"], ["GBP", "0.861"], ["JPY", "171.2"]]},
    "quote": {"text": "The readiness is all.", "source": "Hamlet"},
    "trains": {
        "rows": [
            ["14:02", "Harbour Bridge", "2"],
            ["14:09", "Upper Lock", "1"],
            ["14:15", "Saltmarsh and the coast", "4"],
        ]
    },
    "bikes": {"bikes": 11, "docks": 16},
    "power": {"mix": [["wind", 46], ["sun", 27], ["water", 15], ["gas", 12]]},
    "stage": {
        "rows": [
            ["18:25", "Half-hour call", "All"],
            ["19:00", "Curtain up", "Act I"],
            ["20:05", "Interval", "20 min"],
        ]
    },
}
