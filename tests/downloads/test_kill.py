"""Downloads resumed after their process was killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.downloads.server import File, Hub, Server
from tests.downloads.test_hub import INDEX, NAME, NEEDED, contents, there

SIZE = 3_000_000
POINTS = 20
BY_DEFAULT = {0, 5, 13, 18}

FETCH = """
import sys
from fastdb.downloads.fetch import fetch
print(fetch(sys.argv[1]), flush=True)
"""


def points() -> list[object]:
    """20 kill points spread over a download: even ones of a file behind a link, odd ones of a repository."""
    return [
        pytest.param(number, marks=() if number in BY_DEFAULT else pytest.mark.full, id=f"point{number:02d}")
        for number in range(POINTS)
    ]


@pytest.fixture
def slow() -> Iterator[Server]:
    with Server("localhost").running() as running:
        yield running


def start(named: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, named], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.parametrize("number", points())
def test_a_killed_download_is_resumed_without_loss(
    number: int, slow: Server, hub: Hub, other: Server, tmp_path: Path
) -> None:
    chance, data = random.Random(number), random.Random(100 + number).randbytes(SIZE)
    serving = other if number % 2 else slow
    if number % 2:
        hub.behaviour = File(delay=0.01, drop_every=200_000 if number % 4 == 1 else 0)
        files = {**contents(NEEDED), "unet/diffusion_pytorch_model.safetensors": b"\x00" * 8 + data}
        hub.add(NAME, {**files, "model_index.json": json.dumps(INDEX).encode()})
        named, total = NAME, SIZE + 2 * 150_008 + 8
    else:
        slow.files["/model.ckpt"] = File(data, delay=0.01, drop_every=200_000 if number % 4 == 2 else 0)
        named, total = f"{slow.url}/model.ckpt", SIZE

    victim = start(named)
    deadline = time.monotonic() + 60
    while victim.poll() is None and serving.sent < total * (number + 0.3) / POINTS and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(victim.pid, signal.SIGKILL)
    output, error = victim.communicate()
    assert (victim.returncode, output) == (-signal.SIGKILL, ""), f"it ended before it could be killed {error}"
    # Hidden ones are the memory beside a part, half-written: they go when it is written anew.
    parts = [path for path in tmp_path.rglob("*.part") if not path.name.startswith(".")]
    begun = [path.stat().st_size for path in parts if path.stat().st_size]
    whole = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert sum(begun) + sum(whole) >= total * number / POINTS - 200_000, "what had come is kept"
    serving.log.clear()

    again = start(named)
    output, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    path = Path(output.strip())
    if number % 2:
        assert there(path) == hub.repositories[NAME]
    else:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(data).hexdigest()
    ranges = [request.headers.get("range") for request in serving.log]
    assert ranges[: len(begun)] == [f"bytes={size}-" for size in begun]
    large = 3 if number % 2 else 1
    assert len({request.path for request in serving.log}) == large - len(whole), "and does not come again"
    assert list(tmp_path.rglob("*.part*")) == []


def test_the_default_run_covers_files_and_repositories() -> None:
    assert len(points()) == POINTS
    assert {number % 2 for number in BY_DEFAULT} == {0, 1}
