"""Hosts that keep nothing: with --cache-none, twice the same prompt gives twice the same frames."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from results import saved, succeed
from server import Server

from media import read_frames

TEMPLATE = Path(__file__).parent / "workflows" / "1 Try it without downloads.json"
FRAMES = 4


@pytest.fixture
def forgetful(host: Server, tmp_path: Path) -> Iterator[Server]:
    for name in ("custom_nodes", "input", "output"):
        (tmp_path / name).mkdir()
    (tmp_path / "custom_nodes" / "personalive").symlink_to(Path(__file__).parents[2])
    server = Server(host.folder, tmp_path, "--cpu", "--cache-none")
    yield server
    server.stop()


@pytest.mark.newest_host
def test_without_a_cache(forgetful: Server):
    prompt = json.loads(TEMPLATE.read_text("utf-8"))
    ids = {item["class_type"]: name for name, item in prompt.items()}
    prompt[ids["PersonaLiveExtractMotion"]]["inputs"]["count"] = FRAMES
    files = [saved(forgetful, succeed(forgetful, prompt), ids["SaveVideo"]) for _ in range(2)]
    first, second = map(read_frames, files)
    assert len(first) == FRAMES and (first == second).all()
