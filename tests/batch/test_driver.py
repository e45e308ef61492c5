"""The loop of a batch, with workers that are quickly there: what is shared, in which order, and who dies of what."""

import re
import sys
from functools import partial

import pytest
from light_workers import LightWorker

from personalive_core.batch.cluster import Cluster, hiring
from personalive_core.batch.driver import Batch
from personalive_core.batch.jobs import Job
from personalive_core.errors import InputError

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Ray's Windows is another one"),
    pytest.mark.usefixtures("ray"),
]


def run(folder, *jobs, workers=1, failure=""):
    """Outcomes by the jobs' names, and the calls that were made."""
    outcomes, seen = {}, []
    cluster = Cluster(workers, False, "")
    hire = partial(hiring(LightWorker, cluster), failure)
    jobs = [Job(name, str(folder / name), options, frames, **more) for name, options, frames, more in jobs]
    Batch(jobs, hire, workers, lambda outcome: outcomes.update({outcome.job.name: outcome}), seen.append).run()
    assert len(outcomes) == len(jobs) and seen[-1].jobs_left >= 0
    calls = sorted(folder.iterdir(), key=lambda path: int(path.read_text()))
    return outcomes, [re.sub(r" \d+$", "", path.name) for path in calls]


def test_workers_share_the_cores_and_need_one_beside_a_gpu(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert Cluster(3, False, "").resources == {"num_cpus": 2, "num_gpus": 0}
    assert Cluster(16, False, "").resources == {"num_cpus": 1, "num_gpus": 0}
    assert Cluster(2, True, "").resources == {"num_cpus": 1, "num_gpus": 1}


def test_the_longest_goes_first_and_shared_work_is_done_once(tmp_path):
    shares = {"portrait": "p", "performance": "m"}
    outcomes, calls = run(
        tmp_path, ("a", "", 4, {"cost": 1.0} | shares), ("b", "", 8, {"cost": 2.0} | shares), ("c", "", 1, {})
    )
    assert [outcome.frames for outcome in outcomes.values()] == [1, 8, 4]
    assert calls == [
        "animate with None None c",  # of unknown length
        *("encode b", "extract b", "animate with encode extract b", "animate with encode extract a"),
    ]


def test_what_fails_or_kills_its_worker_leaves_the_others(tmp_path):
    outcomes, calls = run(
        tmp_path,
        ("deadly", "animate dies", 1, {}),
        ("once", "animate dies once", 2, {}),
        ("bad", "extract fails", 1, {"performance": "bad"}),
        ("same", "", 1, {"performance": "bad"}),
        ("dies", "extract dies", 1, {"performance": "dies"}),
        ("with", "extract dies", 1, {"performance": "dies"}),
        ("good", "", 3, {}),
        workers=2,
    )
    failures = {name: outcome.failure for name, outcome in outcomes.items()}
    assert failures["deadly"].startswith("3 workers died while they made it (ActorDiedError: ")
    assert failures["bad"] == failures["same"] == "extract failed"
    assert "3 workers died" in failures["dies"] and "3 workers died" in failures["with"]
    assert not failures["once"] and not failures["good"] and outcomes["once"].frames == 2
    assert sum(call.endswith(" deadly") for call in calls) == 3


def test_workers_extract_one_motion_together(tmp_path):
    """Each waits in its part until the other one is in its own."""
    film = {"performance": "m", "parts": 3}
    outcomes, calls = run(tmp_path, ("a", "meet", 1, film), ("b", "meet", 1, film), ("c", "meet", 1, film), workers=2)
    assert not any(outcome.failure for outcome in outcomes.values())
    assert sorted(calls[:2]) == ["part 0 of 2 a", "part 1 of 2 b"]
    assert sorted(calls[2:]) == [f"animate with None part 0 of 2 and part 1 of 2 {name}" for name in "abc"]


def test_a_part_whose_worker_dies_is_made_again(tmp_path):
    film = {"performance": "m", "parts": 2}
    outcomes, calls = run(tmp_path, ("a", "part dies once", 1, film), ("b", "part dies once", 1, film), workers=2)
    assert not any(outcome.failure for outcome in outcomes.values())
    assert all(sum(call.startswith(f"part {i}") for call in calls) >= 2 for i in range(2))
    assert {f"animate with None part 0 of 2 and part 1 of 2 {name}" for name in "ab"} <= set(calls)


def test_a_part_that_fails_fails_all_that_share_it(tmp_path):
    film = {"performance": "m", "parts": 2}
    outcomes, _ = run(tmp_path, ("a", "part 1 of 2 fails", 1, film), ("b", "part 1 of 2 fails", 1, film), workers=2)
    assert [outcome.failure for outcome in outcomes.values()] == ["part 1 of 2 failed"] * 2


@pytest.mark.parametrize(
    "failure, words", [("no weights", "^no weights$"), ("die", "3 workers died while they loaded")]
)
def test_a_batch_without_workers_ends(tmp_path, failure, words):
    with pytest.raises(InputError, match=words):
        run(tmp_path, ("a", "", 1, {}), failure=failure)
