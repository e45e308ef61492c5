"""Real hosts, each started once. They are ComfyUI checkouts with a `.venv`: COMFYUI_PATH names one or more (separated
as in PATH), else ~/ComfyUI* are taken. COMFYUI_ARGUMENTS replaces `--cpu --fp32-text-enc --preview-method auto`.
VIDEOHELPERSUITE_PATH names a checkout of ComfyUI-VideoHelperSuite, for the one test that needs it."""

import os
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from models import write_models
from server import Server

from media import write_inputs
from tiny import NO_HOST

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LOG_CHARACTERS = 6000


def _hosts() -> list[Path]:
    named = os.environ.get("COMFYUI_PATH")
    folders = map(Path, named.split(os.pathsep)) if named else sorted(Path.home().glob("ComfyUI*"))
    return [folder for folder in folders if named or (folder / "main.py").is_file()]


def _name(folder: Path | None) -> str:
    """In the tests' names. In brackets, by which tests/conftest.py knows them."""
    return f"({folder.name})" if folder else "no host"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A host's models folder, half a gigabyte: removed at the end."""
    folder = tmp_path_factory.mktemp("host") / "models"
    write_models(folder)
    write_links_to_nowhere(folder / "personalive", "")
    write_links_to_nowhere(folder / "personalive" / "detectors", ".onnx")
    yield folder
    shutil.rmtree(folder)


def write_links_to_nowhere(folder: Path, name: str) -> None:
    """One that dangles, one to itself, one that cannot even be looked at: none may keep a node from being there."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, target in (("gone", "nowhere"), ("itself", f"itself{name}"), ("long", "x" * 300)):
        (folder / f"{kind}{name}").symlink_to(target)


def share_opencv(folder: Path) -> None:
    """The hosts come without OpenCV, which the detector needs: they use that of the tests, for any Python 3."""
    found = find_spec("cv2")
    assert found and found.origin, "install opencv-python-headless, which the tests of crops need"
    package = Path(found.origin).parent
    folder.mkdir()
    for part in (package, *package.parent.glob("opencv_python*.libs")):
        (folder / part.name).symlink_to(part)


@pytest.fixture(scope="session", params=_hosts() or [None], ids=_name)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param is None:
        pytest.skip(NO_HOST)
    base = tmp_path_factory.mktemp(request.param.name)
    for name in ("custom_nodes", "input", "output"):
        (base / name).mkdir()
    (base / "models").symlink_to(request.getfixturevalue("models"))
    (base / "custom_nodes" / "personalive").symlink_to(REPOSITORY)
    (base / "custom_nodes" / "personalive_tests").symlink_to(HERE / "pack")
    if other := os.environ.get("VIDEOHELPERSUITE_PATH"):
        (base / "custom_nodes" / "videohelpersuite").symlink_to(Path(other).resolve())
    write_inputs(base / "input")
    for folder in ("input", "output"):
        write_links_to_nowhere(base / folder / "strange", ".motion.safetensors")
    share_opencv(base / "opencv")
    arguments = os.environ.get("COMFYUI_ARGUMENTS", "--cpu --fp32-text-enc --preview-method auto")
    server = Server(request.param, base, *shlex.split(arguments))
    yield server
    server.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests of what is the same in every host run in the newest one alone."""
    older = {
        item
        for item in items
        if item.get_closest_marker("newest_host") and item.callspec.params["host"] not in (None, *_hosts()[-1:])
    }
    config.hook.pytest_deselected(items=older)
    items[:] = [item for item in items if item not in older]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    server = getattr(item, "funcargs", {}).get("host")
    if report.failed and server:
        report.sections.append(("end of the host's log", server.log_text()[-LOG_CHARACTERS:]))
    return report
