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

    def animate(self, job, portrait, performance):
        self._do(f"animate with {portrait} {performance}", job)
        self.made += 1
        return job.frames, self.made

    def progress(self):
        return self.made, 0

    def _do(self, call, job):
        number = len(list(Path(job.output).parent.glob(f"{call} *")))
        Path(job.output).with_name(f"{call} {job.name} {number}").write_text(str(time.time_ns()))
        if job.options == f"{call.partition(' ')[0]} dies" or (job.options == "dies once" and number == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.options == f"{call} fails":
            raise InputError(f"{call} failed")
        return call
