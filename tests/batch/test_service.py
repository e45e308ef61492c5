"""The service's HTTP: what it takes and refuses, and that nothing it took is lost. A stand-in makes the videos."""

import asyncio
import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the service needs it")
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer

from personalive_core.batch import service as service_module
from personalive_core.batch.service import REQUEST, Service
from personalive_core.cli.batch import animate_parser
from personalive_core.cli.serve import job_of
from personalive_core.errors import InputError
from personalive_core.weights.find import EXAMPLE, MINIATURE

OPTIONS = Namespace(weights=MINIATURE, gpus=0, download=False)
TOKEN = {"Authorization": "Bearer secret"}
FORM = {"portrait": "portrait.png", "driving": "driving.mp4"}


class Videos:
    """Makes them while it may. Awaited with a job, as a worker is."""

    def __init__(self):
        self.may, self.made, self.deaths = asyncio.Event(), [], 0

    async def __call__(self, job):
        await self.may.wait()
        if self.deaths:
            self.deaths -= 1
            raise RuntimeError("the worker died")
        if job.options.seed == 1:
            raise InputError("no face")
        self.made.append(Path(job.output).parent.name)
        Path(job.output).write_bytes(b"video")


def form(files=FORM, **fields) -> FormData:
    data = FormData()
    for name, file in files.items():
        data.add_field(name, (EXAMPLE / file).read_bytes(), filename=file)
    for name, value in ({"width": 128, "height": 128, "max-frames": 4} | fields).items():
        data.add_field(name.replace("_", "-"), str(value))
    return data


def serving(tmp_path, scenario, workers=1, queue=2, keep=3600.0):
    """Runs `scenario(client, videos)` against the service."""

    async def run():
        videos = Videos()
        make = partial(job_of, animate_parser(OPTIONS), 10)
        service = Service(tmp_path, "secret", make, videos, workers=workers, queue=queue, keep=keep)
        async with TestClient(TestServer(service.application()), headers=TOKEN) as client:
            await asyncio.wait_for(scenario(client, videos), 20)

    asyncio.run(run())


async def post(client, data=None, status=202, **fields):
    answer = await client.post("/videos", data=data or form(**fields))
    assert answer.status == status, await answer.text()
    return await answer.json()


async def state(client, name):
    return await (await client.get(f"/videos/{name}")).json()


async def until(client, name, *states):
    while (found := await state(client, name))["state"] not in states:
        await asyncio.sleep(0.01)
    return found


def test_a_request_from_its_files_to_its_video(tmp_path):
    async def scenario(client, videos):
        sent = await post(client)
        await until(client, sent["id"], "running")
        waiting = await post(client, mirror="true", head_rotation=0.5)
        assert (waiting["state"], waiting["before"]) == ("waiting", 0)
        assert (await client.get(f"/videos/{sent['id']}/result")).status == 409
        videos.may.set()
        done = await until(client, waiting["id"], "done")
        result = await client.get(done["result"])
        assert (result.status, result.content_type, await result.read()) == (200, "video/mp4", b"video")
        assert videos.made == [sent["id"], waiting["id"]]
        failed = await until(client, (await post(client, seed=1))["id"], "failed")
        assert failed["error"] == "no face"

    serving(tmp_path, scenario)


def test_a_full_queue_answers_429_with_the_time_to_wait(tmp_path):
    async def scenario(client, videos):
        await until(client, (await post(client))["id"], "running")
        await asyncio.gather(post(client), post(client))
        answer = await client.post("/videos", data=form())
        assert answer.status == 429 and int(answer.headers["Retry-After"]) == 180
        assert len(list(tmp_path.iterdir())) == 3
        videos.may.set()

    serving(tmp_path, scenario)


@pytest.mark.parametrize(
    "data, status, words",
    [
        (lambda: form({"portrait": "portrait.png"}), 400, "--driving-video --motion is required"),
        (lambda: form(max_frames=11, width=512, height=512), 400, "this is the work of 11 frames, and 10 are the most"),
        (lambda: form(width=100), 400, "width is 100"),
        (lambda: form(weights="/"), 400, "weights cannot be chosen here"),
        (lambda: form(output="elsewhere/a.mp4"), 400, "output cannot be chosen here"),
        (lambda: form(sheet="elsewhere/a.png"), 400, "sheet cannot be chosen here"),
        (lambda: form(detector="/etc/passwd"), 400, "detector cannot be chosen here"),
        (lambda: form({"driving": "driving.mp4"}, ref_image="/etc/passwd"), 400, "ref-image is no field"),
        (lambda: form({"portrait": "portrait.png", "motion": "driving.mp4"}), 400, "cannot be read"),
        (lambda: form(seed="1" * 1001), 400, "seed has more than 1000 bytes"),
        (lambda: form(overwrite="true"), 400, "overwrite is no option"),
        (lambda: b"portrait", 400, "send a form"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, data, status, words):
    async def scenario(client, videos):
        assert words in (await post(client, data(), status))["error"]
        assert list(tmp_path.iterdir()) == []

    serving(tmp_path, scenario)


def test_too_large_and_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "UPLOAD_BYTES", 1000)

    async def scenario(client, videos):
        assert "portrait is too large" in (await post(client, status=413))["error"]
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer other"}):
            assert (await client.post("/videos", data=form(), headers=headers)).status == 401
        for path in ("/videos/" + "0" * 32, "/videos/..", "/videos/" + "0" * 32 + "/result"):
            assert (await client.get(path)).status == 404
        assert list(tmp_path.iterdir()) == []

    serving(tmp_path, scenario)


def test_a_worker_that_dies_costs_no_request_and_one_that_always_dies_one(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "PAUSE", 0.0)

    async def scenario(client, videos):
        videos.may.set()
        videos.deaths = 2
        assert (await until(client, (await post(client))["id"], "done", "failed"))["state"] == "done"
        videos.deaths = 3
        assert "3 workers died" in (await until(client, (await post(client))["id"], "failed"))["error"]

    serving(tmp_path, scenario)


def test_a_service_that_begins_again_goes_on_with_what_it_took(tmp_path):
    names = []

    async def first(client, videos):
        names.extend([(await post(client))["id"] for _ in range(2)])

    async def second(client, videos):
        videos.may.set()
        for name in names:
            await until(client, name, "done")
        assert sorted(videos.made) == sorted(names)
        assert json.loads((tmp_path / names[0] / REQUEST).read_text())["width"] == "128"

    async def third(client, videos):
        assert [(await state(client, name))["state"] for name in names] == ["done", "done"]

    serving(tmp_path, first)
    serving(tmp_path, second)
    serving(tmp_path, third)


def test_old_videos_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "UPLOAD_SECONDS", 0.0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.mp4").touch()

    async def scenario(client, videos):
        while list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)

    serving(tmp_path, scenario, keep=0.0)
