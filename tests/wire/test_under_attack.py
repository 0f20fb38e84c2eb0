"""Ordinary clients are served while others attack: a small run of bench/attacks.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "attacks.py"


@pytest.mark.once
@pytest.mark.parametrize(
    "attack", ["slowloris", "slow readers", "many fields", "huge fields", "pipelined", "upload"]
)
def test_others_are_served(attack: str) -> None:
    """None fails, the worker lives, and its memory is bounded; its speed is for the bench."""
    command = [sys.executable, str(BENCH), "--rounds", "1", "--seconds", "1", "--scale", "0.1"]
    ran = subprocess.run(
        [*command, "--ratio", "1000", "--only", attack],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"| {attack}: " in ran.stdout
