"""The box office's schema, held against what the site does, by schemathesis."""

import subprocess
import sys

import pytest

# Nothing a schema can say makes these come out right:
EXCLUDED = [
    "negative_data_rejection",  # fields are lenient: the number 1 for the string "1"
    "positive_data_acceptance",  # a title may be taken, a poster be no picture, a show unknown
]
# After twenty bookings all would end in 429.
PLENTY = {"MONTAGE_BOOKING_RATE": "1000000/min"}


@pytest.fixture(scope="module")
def site(serve):
    """One of its own: what is tried leaves shows and bookings behind."""
    with serve(**PLENTY) as site:
        yield site


def test_schema_is_made_without_warnings(site):
    site.manage("spectacular", "--validate", "--fail-on-warn", "--file", "/dev/null")


@pytest.mark.timeout(330)
def test_answers_are_what_the_schema_says(site, client, tmp_path):
    pair = client.post("/api/token/", json={"username": "demo", "password": "demo"}).json()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{site.url}/api/schema/",
            f"--header=Authorization: Bearer {pair['access']}",
            f"--exclude-checks={','.join(EXCLUDED)}",
            "--generation-deterministic",
            "--max-examples=10",
            "--request-timeout=10",
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        # Half a minute on a machine that has nothing else to do.
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in site.log.read_text()
