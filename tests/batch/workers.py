"""Workers that die on demand."""

import os
import signal
from pathlib import Path

from personalive_core.cli import outputs
from personalive_core.cli.outputs import Checkpoint
from personalive_core.cli.worker import AnimateWorker
from personalive_core.media import video_writer

SEGMENT = 8


class MortalWorker(AnimateWorker):
    """Checkpoints after each segment. Gets SIGKILL once the video "killed" has one, the first time, and notes what the
    next worker goes on from."""

    def prepare(self):
        outputs.SAVE_EVERY = 0
        outputs.SEGMENT = video_writer.SEGMENT = SEGMENT
        super().prepare()

    def animate(self, job, portrait, performance):
        self._output = Path(job.output)
        return super().animate(job, portrait, performance)

    def _bar(self, total, initial, unit):
        if initial:
            self._output.with_suffix(".resumed").write_text(str(initial))
        return super()._bar(total, initial, unit)

    def _count(self):
        super()._count()
        note = self._output.with_suffix(".killed")
        if self._output.stem == "killed" and not note.exists() and Checkpoint(self._output, {}).path.is_file():
            note.write_text(str(self._of_job))
            os.kill(os.getpid(), signal.SIGKILL)
