"""Fetching, against a stand-in for the hub on this machine: breaks, resuming, wrong answers."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download

from hub_stand_in import BLOCK, COMMIT, StandIn, use_hub
from personalive_core.errors import InputError
from personalive_core.weights import hub
from personalive_core.weights.find import find_weights
from personalive_core.weights.hub import DETECTORS, HubFile, download, find_detector, find_small_decoder

CONTENT = bytes(range(256)) * 4096
LARGE = HubFile("a", "owner/model", "deep/in/large.pth", "part/large.pth", len(CONTENT))
SMALL = HubFile("a", "owner/model", "config.json", "model/config.json", 2)
LARGE_ADDRESS = "/owner/model/resolve/main/deep/in/large.pth"
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def stand_in(monkeypatch, tmp_path_factory):
    monkeypatch.setitem(hub.REVISIONS, "owner/model", "main")
    monkeypatch.setattr(hub, "_PAUSE", 0)
    monkeypatch.setattr(hub, "_LOOK", 0.02)
    cache = str(tmp_path_factory.mktemp("cache"))
    for module in (constants, file_download):  # the latter in huggingface_hub before 0.25
        monkeypatch.setattr(module, "HF_HUB_CACHE", cache, raising=False)
    with StandIn({LARGE_ADDRESS: CONTENT, "/owner/model/resolve/main/config.json": b"{}"}) as server:
        use_hub(monkeypatch, server.address)
        yield server


def fetch(folder: Path, **arguments):
    download(folder, [LARGE, SMALL], **arguments)


def files_in(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock")
    return sorted(path.relative_to(folder).as_posix() for path in files)


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


def test_a_dropped_connection_is_resumed_where_it_broke(stand_in, tmp_path):
    stand_in.drops = [300_000, 1, 400_000]
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert stand_in.sent < len(CONTENT) + 3 * BLOCK  # requests loses what it has read of a block


def test_the_next_run_goes_on_where_a_stopped_one_left(stand_in, tmp_path):
    class Stop(Exception):
        pass

    def stop(name, done, total):
        if done > 200_000:
            raise Stop

    with pytest.raises(Stop):
        fetch(tmp_path, progress=stop)
    (part,) = (tmp_path / "part").glob("large*")
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
        assert stand_in.requests == 1  # of the other one
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
    stand_in.drops = [300_000] + [0] * hub._TRIES
    with pytest.raises(InputError, match=r"large\.pth could not be fetched"):
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
    use_hub(monkeypatch, "http://127.0.0.1:9")
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


def test_all_that_the_model_needs(stand_in, tmp_path, monkeypatch):
    assert len(hub.FILES) == 10
    monkeypatch.setattr(hub, "FILES", tuple(replace(file, sha256=None) for file in hub.FILES))
    contents = {file.target: file.target.encode() * (10_000 if file.size > 1000 else 1) + b"!" for file in hub.FILES}
    stand_in.files = {file.address.removeprefix(stand_in.address): contents[file.target] for file in hub.FILES}
    download(tmp_path, hub.FILES)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == contents
    assert len(stand_in.starts) == 8  # the two config.json come without the storage
    requests = stand_in.requests
    assert find_weights(tmp_path).missing == ()
    download(tmp_path, hub.FILES)
    assert stand_in.requests == requests


def test_a_detector_is_fetched_only_when_it_is_asked_for(stand_in, tmp_path, monkeypatch):
    file = replace(DETECTORS["yunet"], sha256=CHECKSUM)
    monkeypatch.setitem(DETECTORS, "yunet", file)
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


def test_the_small_decoder_is_fetched_only_when_it_is_asked_for(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SMALL_DECODER", tuple(replace(file, sha256=None) for file in hub.SMALL_DECODER))
    for file in hub.SMALL_DECODER:
        stand_in.files[file.address.removeprefix(stand_in.address)] = CONTENT
    with pytest.raises(InputError, match=r"the small decoder TAESD is not there yet.*--download.*config.json and "):
        find_small_decoder(tmp_path, fetch=False)
    assert stand_in.requests == 0
    reports = []
    folder = find_small_decoder(tmp_path, True, lambda *report: reports.append(report))
    assert folder == tmp_path / "taesd" and reports
    assert files_in(tmp_path) == ["taesd/config.json", "taesd/diffusion_pytorch_model.safetensors"]
    requests = stand_in.requests
    assert find_small_decoder(tmp_path, fetch=False) == find_small_decoder(tmp_path, fetch=True) == folder
    assert stand_in.requests == requests


def test_address(monkeypatch):
    use_hub(monkeypatch, "http://mirror")
    monkeypatch.setitem(hub.REVISIONS, hub.PERSONALIVE, "0a1b")
    assert hub.FILES[0].address == (
        "http://mirror/huaichang/PersonaLive/resolve/0a1b/pretrained_weights/personalive/denoising_unet.pth"
    )


@pytest.mark.parametrize("endpoint", ["http://[::1", "hub.example"])
def test_an_endpoint_that_is_no_address_is_one_sentence(tmp_path, endpoint):
    program = "import sys; from personalive_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "download", "--weights", str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: HF_ENDPOINT is {endpoint!r}, which is no address" in done.stderr


def test_all_files_of_a_repository_are_of_one_commit(stand_in, tmp_path):
    def move(name, done, total):
        if name == LARGE.target:
            stand_in.files["/owner/model/resolve/other/config.json"] = b"[]"

    fetch(tmp_path, progress=move)
    assert stand_in.asked == [LARGE_ADDRESS, f"/owner/model/resolve/{COMMIT}/config.json"]


def test_a_file_in_the_shared_cache_is_used_in_place(stand_in, tmp_path, caplog):
    repository = Path(constants.HF_HUB_CACHE, "models--owner--model")
    blob, snapshot = repository / "blobs" / CHECKSUM, repository / "snapshots" / COMMIT / LARGE.path
    for path in (blob, snapshot, repository / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    blob.write_bytes(CONTENT)
    snapshot.symlink_to(blob)
    (tmp_path / "part").mkdir()
    (tmp_path / "part/large.pth").symlink_to("gone")
    download(tmp_path, [LARGE])
    assert stand_in.requests == 0 and (tmp_path / "part/large.pth").samefile(blob)

    (tmp_path / "part/large.pth").unlink()
    blob.write_bytes(CONTENT[:-1] + b"!")
    download(tmp_path, [LARGE])
    assert "is damaged" in caplog.text and (tmp_path / "part/large.pth").read_bytes() == CONTENT


def test_two_at_once_give_one_whole_file(stand_in, tmp_path):
    stand_in.pause = 0.002
    threads = [threading.Thread(target=download, args=(tmp_path, [LARGE])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert stand_in.sent == len(CONTENT)


def test_what_is_on_the_disk_is_checked_before_it_gets_its_name(stand_in, tmp_path):
    """Not only what came in: another program may have written into the file."""

    def disturb(name, done, total):
        if 500_000 < done < len(CONTENT):
            (part,) = (tmp_path / "part").glob("*.part")
            with part.open("r+b") as file:
                file.write(b"!")

    with pytest.raises(InputError, match=r"have not the checksum"):
        fetch(tmp_path, progress=disturb)
    assert files_in(tmp_path) == []


def test_the_pinned_checksum_is_the_one_that_counts(stand_in, tmp_path):
    pinned = replace(LARGE, sha256=CHECKSUM)
    stand_in.files[LARGE_ADDRESS] = CONTENT[::-1]
    with pytest.raises(InputError, match=f"another file, .* in place of {CHECKSUM}"):
        download(tmp_path, [pinned])
    stand_in.plain = True
    with pytest.raises(InputError, match=f"have not the checksum {CHECKSUM}"):
        download(tmp_path, [pinned])
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_asked_again_when_it_says(stand_in, tmp_path, status):
    stand_in.statuses, stand_in.retry_after = [0, status], "1"
    begin, calls = time.monotonic(), []
    download(tmp_path, [LARGE], progress=lambda *call: calls.append(call))
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert 1 <= time.monotonic() - begin < 4
    assert len(calls) > 20  # so that who waits can stop


def test_a_wait_that_is_too_long_ends_it(stand_in, tmp_path):
    stand_in.status, stand_in.retry_after = 429, "86400"
    with pytest.raises(InputError, match="the hub answered 429"):
        fetch(tmp_path)
    assert stand_in.requests == 1


def test_a_server_that_always_breaks_off_is_not_asked_for_ever(stand_in, tmp_path):
    stand_in.most = 100
    with pytest.raises(InputError, match=r"large\.pth could not be fetched .*; try again"):
        fetch(tmp_path)
    assert len(stand_in.starts) == hub._TRIES


def test_a_change_midway_starts_anew_where_only_an_etag_is_known(stand_in, tmp_path):
    new = CONTENT[::-1]

    def change(name, done, total):
        if done > 200_000:
            stand_in.files[LARGE_ADDRESS] = new

    stand_in.plain, stand_in.drops = True, [400_000]
    download(tmp_path, [LARGE], progress=change)
    assert (tmp_path / "part/large.pth").read_bytes() == new
    assert files_in(tmp_path) == ["part/large.pth"]


def test_the_token_goes_to_the_hub_alone(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(tmp_path)
    assert stand_in.tokens == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_offline_nothing_is_asked(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    program = OTHER.replace("hub.download", "hub._PAUSE = 60; hub.download")
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=30)
    assert "could not be fetched (the hub cannot be reached" in done.stderr and "offline" in done.stderr.lower()
    assert stand_in.requests == 0
