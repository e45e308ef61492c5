"""The whole service: 50 clients at once, a replica that is killed, and memory that stays flat."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

from personalive_core.weights.find import EXAMPLE, MINIATURE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
CLIENTS, FRAMES = 50, 4


@pytest.fixture
def service(tmp_path):
    """The process, its address and its token."""
    pytest.importorskip("ray.serve", reason="needs the extra `serve`")
    command = [sys.executable, "-m", "personalive_core", "serve", "--weights", MINIATURE, "--gpus", 0, "--workers", 2]
    command += ["--requests", tmp_path / "requests", "--port", 7881]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_STATE_HOME": str(tmp_path / "state")}
    with subprocess.Popen(map(str, command), stdout=subprocess.PIPE, text=True, env=environment) as process:
        address, token = re.search(r"POST to (\S+)/videos .* Bearer (\w+)", process.stdout.readline()).groups()
        yield process, address, token
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def replicas(service: subprocess.Popen) -> list[int]:
    """Their processes' numbers."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {}
    for pid in pids:
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        return pid == service.pid or (pid in parents and is_ours(parents[pid]))

    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in parents if is_ours(pid)}
    return sorted(pid for pid, name in names.items() if name.startswith(b"ray::ServeReplica:personalive"))


def memory(pids) -> int:
    """MB that are resident."""
    return sum(int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in pids) // 1024


def test_fifty_clients_a_killed_replica_and_flat_memory(service, tmp_path):
    import requests

    process, address, token = service
    headers = {"Authorization": f"Bearer {token}"}
    fields = {"width": 128, "height": 128, "max-frames": FRAMES}

    def client(number: int) -> bytes:
        files = {"portrait": (EXAMPLE / "portrait.png").read_bytes(), "driving": (EXAMPLE / "driving.mp4").read_bytes()}
        files = {name: (f"{name}.mp4", content) for name, content in files.items()}
        answer = requests.post(f"{address}/videos", data=fields, files=files, headers=headers, timeout=60)
        assert answer.status_code == 202, answer.text
        name = answer.json()["id"]
        while (state := requests.get(f"{address}/videos/{name}", headers=headers, timeout=60).json())[
            "state"
        ] != "done":
            assert state["state"] in ("waiting", "running"), state
            time.sleep(0.5)
        return requests.get(f"{address}{state['result']}", headers=headers, timeout=60).content

    videos, sizes = set(), []
    with ThreadPoolExecutor(CLIENTS) as clients:
        coming = [clients.submit(client, number) for number in range(CLIENTS)]
        for count, done in enumerate(as_completed(coming), 1):
            videos.add(done.result())
            if count == 2:
                killed = replicas(process)[0]
                os.kill(killed, signal.SIGKILL)
            if count % 10 == 0:
                sizes.append((memory([process.pid]), memory(replicas(process)[:1])))
    print(f"MB of the service and of a replica after each ten videos: {sizes}")
    assert len(videos) == 1 and len(videos.pop()) > 1000  # each one the same
    assert len(replicas(process)) == 2 and killed not in replicas(process)
    (first, first_replica), (last, last_replica) = sizes[1], sizes[-1]
    assert last < first + 20 and last_replica < first_replica + 150  # which the encoder's threads vary by
