"""A worker without networks: its jobs' options are what it is to do."""

import os
import signal
import time
from pathlib import Path

from personalive_core.errors import InputError


class LightWorker:
    """Notes its calls in the folder of a job's output, each in a file of its own that holds the time."""

    def __init__(self, failure: str = ""):
        self.failure, self.made = failure, 0

    def prepare(self):
        if self.failure == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.failure:
            raise InputError(self.failure)

    def encode(self, job):
        return self._do("encode", job)

    def extract(self, job):
        return self._do("extract", job)

    def extract_part(self, job, index, count):
        part, deadline = self._do(f"part {index} of {count}", job), time.time() + 60
        while job.options == "meet" and not all(self._calls(job, f"part {i} of {count}") for i in range(count)):
            assert time.time() < deadline, "no other worker extracts the other part"
            time.sleep(0.05)
        return None, part

    def join(self, *parts):
        return " and ".join(parts)

    def animate(self, job, portrait, performance):
        self._do(f"animate with {portrait} {performance}", job)
        self.made += 1
        return job.frames, self.made

    def progress(self):
        return self.made, 0

    def _calls(self, job, call):
        return len(list(Path(job.output).parent.glob(f"{call} *")))

    def _do(self, call, job):
        number, verb = self._calls(job, call), call.partition(" ")[0]
        Path(job.output).with_name(f"{call} {job.name} {number}").write_text(str(time.time_ns()))
        if job.options == f"{verb} dies" or (job.options == f"{verb} dies once" and number == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.options == f"{call} fails":
            raise InputError(f"{call} failed")
        return call
