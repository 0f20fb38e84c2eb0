"""The last round of each kind on each board, remembered as long as the process lives.

Rounds with a service made to fail or to be slow are not kept: they would compare nothing.
"""

_last = {}


def remember(kind, board, answers, took):
    spans = {answer.tile.service: (answer.began, answer.ended) for answer in answers}
    _last[kind, board.pk] = (took, spans)


def comparison(board):
    """What the banner and the score (the chart of who waited when) need."""
    concurrent, concurrent_spans = _last.get(("concurrent", board.pk), (None, {}))
    serial, serial_spans = _last.get(("serial", board.pk), (None, {}))
    longest = max(concurrent or 0, serial or 0)
    return {
        "concurrent": concurrent,
        "serial": serial,
        "ratio": serial / concurrent if serial and concurrent else None,
        "concurrent_percent": 100 * concurrent / longest if concurrent else 0,
        "serial_percent": 100 * serial / longest if serial else 0,
        "longest": longest,
        "concurrent_spans": concurrent_spans,
        "serial_spans": serial_spans,
    }


def score(answers, took, other_spans, longest):
    """A lane for each answer: this round's bar and the other kind's, in percent of the longest."""
    scale = 100 / max(took, longest)
    lanes = []
    for answer in answers:
        began, ended = other_spans.get(answer.tile.service, (0, 0))
        lanes.append(
            {
                "answer": answer,
                "x": scale * answer.began,
                "width": scale * answer.took,
                "other_x": scale * began,
                "other_width": scale * (ended - began),
            }
        )
    return lanes


def expected(services):
    """The two ways as they would be with no overhead: a lane a service, in percent of the sum."""
    services = list(services)
    total = sum(service.latency for service in services)
    lanes, begins = [], 0
    for service in services:
        lanes.append({"x": 100 * begins / total, "width": 100 * service.latency / total})
        begins += service.latency
    return lanes
