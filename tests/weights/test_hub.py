"""Fetching, against a stand-in for the hub on this machine: breaks, resuming, wrong answers."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_stand_in import StandIn
from personalive_core.errors import InputError
from personalive_core.weights import hub
from personalive_core.weights.find import find_weights
from personalive_core.weights.hub import DETECTORS, HubFile, download, find_detector

CONTENT = bytes(range(256)) * 4096
LARGE = HubFile("a", "owner/model", "deep/in/large.pth", "part/large.pth", len(CONTENT))
SMALL = HubFile("a", "owner/model", "config.json", "model/config.json", 2)
LARGE_ADDRESS = "/owner/model/resolve/main/deep/in/large.pth"


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(hub.REVISIONS, "owner/model", "main")
    monkeypatch.setattr(hub, "_PAUSE", 0)
    monkeypatch.setattr(hub, "_LOOK", 0.02)
    with StandIn({LARGE_ADDRESS: CONTENT, "/owner/model/resolve/main/config.json": b"{}"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def fetch(folder: Path, **arguments):
    download(folder, [LARGE, SMALL], **arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetches_what_is_missing_and_asks_nothing_once_all_is_there(stand_in, tmp_path):
    calls = []
    fetch(tmp_path, progress=lambda *call: calls.append(call))
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert (tmp_path / "model/config.json").read_bytes() == b"{}"
    assert calls[-1] == ("model/config.json", len(CONTENT) + 2, len(CONTENT) + 2)
    requests = stand_in.requests
    fetch(tmp_path)
    assert stand_in.requests == requests


def test_a_dropped_connection_is_resumed_with_no_byte_twice(stand_in, tmp_path):
    stand_in.drops = [300_000, 1, 400_000]
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert stand_in.sent == len(CONTENT)


def test_the_next_run_goes_on_where_a_stopped_one_left(stand_in, tmp_path):
    class Stop(Exception):
        pass

    def stop(name, done, total):
        if done > 200_000:
            raise Stop

    with pytest.raises(Stop):
        fetch(tmp_path, progress=stop)
    (part,) = (tmp_path / "part").iterdir()
    assert part.suffix == ".part"
    have, first = part.stat().st_size, []
    fetch(tmp_path, progress=lambda name, done, total: first.append(done))
    assert first[0] >= have > 200_000
    assert stand_in.starts[1:] == [("large.pth", have)]
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT


OTHER = """
import sys
from pathlib import Path
from personalive_core.weights import hub

hub.REVISIONS["owner/model"] = "main"
hub.download(Path(sys.argv[1]), [hub.HubFile("a", "owner/model", "deep/in/large.pth", "part/large.pth", 1)])
"""


@pytest.mark.parametrize("dies", [False, True])
def test_one_process_waits_for_another_that_fetches_into_the_folder(stand_in, tmp_path, dies):
    class Cancel(Exception):
        pass

    def cancel(name, done, total):
        raise Cancel(name)

    calls = []

    def watch(*call):
        calls.append(call)
        if dies:
            other.kill()

    stand_in.pause = 0.03
    with subprocess.Popen([sys.executable, "-c", OTHER, tmp_path]) as other:
        while stand_in.sent < 200_000:
            assert other.poll() is None
            time.sleep(0.01)
        with pytest.raises(Cancel, match=f"another process is fetching into {tmp_path / 'part'}"):
            fetch(tmp_path, progress=cancel)
        assert stand_in.requests == 2  # of the other one
        fetch(tmp_path, progress=watch)
    assert calls[0] == (f"another process is fetching into {tmp_path / 'part'}: waiting for it", 0, 0)
    assert bool(other.returncode) == dies
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    starts = [start for _, start in stand_in.starts]
    assert starts[0] == 0 and len(starts) == 1 + dies and (not dies or 0 < starts[1] < len(CONTENT))


def test_a_server_that_sends_the_whole_file_again(stand_in, tmp_path):
    stand_in.drops, stand_in.ranges = [300_000], False
    calls = []
    fetch(tmp_path, progress=lambda *call: calls.append(call[1]))
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert calls[-1] == len(CONTENT) + 2


def test_a_new_version_does_not_go_on_with_the_old_one(stand_in, tmp_path):
    stand_in.drops = [300_000] + [0] * hub._ATTEMPTS
    with pytest.raises(InputError, match="stopped after 300000 of 1048576 bytes"):
        fetch(tmp_path)
    new = CONTENT[::-1]
    stand_in.files[LARGE_ADDRESS] = new
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == new
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]


@pytest.mark.parametrize("stored", [CONTENT[:-1], CONTENT[:-1] + b"!", CONTENT + b"!"])
def test_a_truncated_or_wrong_file_never_gets_its_name(stand_in, tmp_path, stored):
    stand_in.stored[LARGE_ADDRESS] = stored
    for _ in range(2):
        with pytest.raises(InputError, match=r"large\.pth"):
            fetch(tmp_path)
        assert not (tmp_path / "part/large.pth").exists()
    stand_in.stored.clear()
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_refusal_names_file_address_and_folder(stand_in, tmp_path, status):
    stand_in.status = status
    for _ in range(2):
        with pytest.raises(InputError) as error:
            fetch(tmp_path)
        assert f"the hub answered {status}" in str(error.value)
        assert f"{stand_in.address}{LARGE_ADDRESS} -> {tmp_path / 'part'}" in str(error.value)
        assert "config.json" in str(error.value)  # it is still missing too
        assert files_in(tmp_path) == []


def test_no_network(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be reached(.|\n)*resolve/main/config.json -> "):
        fetch(tmp_path)


def test_too_little_disk_is_found_before_the_first_byte(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000))
    with pytest.raises(InputError, match=r"0\.00 GB free"):
        fetch(tmp_path)
    assert stand_in.sent == 0


def test_a_folder_that_cannot_be_looked_at_has_no_weights(tmp_path):
    assert find_weights(tmp_path / ("x" * 300)).missing == hub.FILES


def test_an_absolute_target_is_elsewhere_and_its_disk_is_checked(stand_in, tmp_path, monkeypatch):
    vae = replace(LARGE, target=str(tmp_path / "vae/large.pth"))
    with monkeypatch.context() as full:
        full.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000))
        with pytest.raises(InputError, match=r"vae has 0\.00 GB free and 0\.00 GB are still to fetch"):
            download(tmp_path / "weights", [vae])
    download(tmp_path / "weights", [vae])
    assert files_in(tmp_path) == ["vae/large.pth"]


def test_all_that_the_model_needs(stand_in, tmp_path):
    assert len(hub.FILES) == 10
    contents = {file.target: file.target.encode() * (10_000 if file.size > 1000 else 1) + b"!" for file in hub.FILES}
    stand_in.files = {file.address.removeprefix(stand_in.address): contents[file.target] for file in hub.FILES}
    download(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == contents
    assert len(stand_in.starts) == 8  # the two config.json come without the storage
    requests = stand_in.requests
    assert find_weights(tmp_path).missing == ()
    download(tmp_path)
    assert stand_in.requests == requests


def test_a_detector_is_fetched_only_when_it_is_asked_for(stand_in, tmp_path):
    file = DETECTORS["yunet"]
    stand_in.files = {file.address.removeprefix(stand_in.address): CONTENT}
    with pytest.raises(InputError) as error:
        find_detector(tmp_path, "yunet", fetch=False)
    assert file.address in str(error.value) and str(tmp_path / "detectors") in str(error.value)
    assert stand_in.requests == 0
    path = find_detector(tmp_path, "yunet", fetch=True)
    assert path == tmp_path / "detectors" / "face_detection_yunet_2023mar.onnx" and path.read_bytes() == CONTENT
    requests = stand_in.requests
    assert find_detector(tmp_path, "yunet", fetch=False) == find_detector(tmp_path, "yunet", fetch=True) == path
    assert stand_in.requests == requests
    assert not {f.part for f in find_weights(tmp_path).missing} & {"detector"}


def test_address(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub.FILES[0].address == (
        "https://huggingface.co/huaichang/PersonaLive/resolve/main/pretrained_weights/personalive/denoising_unet.pth"
    )
    monkeypatch.setitem(hub.REVISIONS, hub.PERSONALIVE, "0a1b")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    assert hub.FILES[0].address.startswith("http://mirror/huaichang/PersonaLive/resolve/0a1b/pretrained_weights/")
