"""The secrets in the links to the live page. They are kept, so that a link in OBS outlives the server."""

import json
import logging
import os
import secrets
import sys
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)

BYTES = 16


def state_folder() -> Path:
    """Where this system keeps what programs remember of a user."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "personalive"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "personalive"
    return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "personalive"


def load_tokens(folder: Path) -> tuple[str, str]:
    """Reads the tokens of driver and viewers, or makes them, in a file that only this user can read.

    Args:
        folder: That holds the file; it is made where it is missing. Where nothing can be written, tokens are new.
    """
    path, tokens = folder / "live.json", (secrets.token_hex(BYTES), secrets.token_hex(BYTES))
    if known := _read(path):
        return known
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if known := _read(path):  # another server was faster
                return known
            path.unlink(missing_ok=True)  # damaged
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(tokens, file)
    except OSError as error:
        log.warning("%s cannot be written (%s): the links change with each start", path, error.strerror)
    return tokens


def _read(path: Path) -> tuple[str, str] | None:
    try:
        driver, viewer = json.loads(path.read_text())
        if min(len(driver), len(viewer)) >= 2 * BYTES and driver != viewer:
            return str(driver), str(viewer)
    except (OSError, TypeError, ValueError):
        pass
    return None
