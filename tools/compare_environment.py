"""What installing this pack changes in a host's Python: `pip freeze` before and after, told apart.

    python tools/compare_environment.py ~/ComfyUI ~/another/ComfyUI

Installs into an empty environment that sees the packages of the host's `.venv`, so the host itself stays as it is.
Ends with 1 if a package changed, went or came that requirements.txt does not name.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def main(hosts: list[str]) -> int:
    named = {_name(line) for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")}
    unexpected = [_unexpected(Path(host).expanduser(), named) for host in hosts]
    return int(any(unexpected))


def _unexpected(host: Path, named: set[str]) -> bool:
    """Whether the host's environment changes beyond the packages named; says how it changes."""
    host_python = _python(host / ".venv")
    show_folder = "import sysconfig; print(sysconfig.get_path('purelib'))"
    with tempfile.TemporaryDirectory() as folder:
        _output(host_python, "-m", "venv", folder)
        python = _python(Path(folder))
        overlay = Path(_output(python, "-c", show_folder).strip())
        (overlay / "host.pth").write_text(_output(host_python, "-c", show_folder))
        before = _freeze(python)
        print(_output(python, "-m", "pip", "install", "-r", str(REQUIREMENTS)), end="")
        after = _freeze(python)
    for line in sorted(before ^ after):
        print(f"{'-' if line in before else '+'} {line}")
    changed = {_name(line) for line in before ^ after}
    print(f"{host}: {len(before)} packages, {len(changed)} changed, {len(changed - named)} of them not named")
    return bool(changed - named)


def _python(environment: Path) -> str:
    windows = environment / "Scripts" / "python.exe"
    return str(windows if windows.exists() else environment / "bin" / "python")


def _freeze(python: str) -> set[str]:
    return set(_output(python, "-m", "pip", "freeze", "--all").splitlines())


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
