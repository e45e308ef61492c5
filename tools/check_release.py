"""Whether this commit may be released under a tag; if not, one sentence says why.

python tools/check_release.py 0.1.0
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIELDS = (("project", "urls", "Repository"), *(("tool", "comfy", name) for name in ("PublisherId", "Icon", "Banner")))


def complaint(pyproject: dict, changelog: str, tag: str) -> str:
    """What is in the way of a release, in one sentence; empty if nothing is.

    Args:
        pyproject: What is in pyproject.toml.
        changelog: The text of CHANGELOG.md.
        tag: Of the commit: the version.
    """
    missing = [name for table, part, name in FIELDS if not pyproject[table][part].get(name)]
    if missing:
        return (
            f"pyproject.toml lacks {', '.join(missing)}: the owner fills them in once, as CONTRIBUTING.md says under "
            "'What the owner fills in, once'."
        )
    version = pyproject["project"]["version"]
    if tag != version:
        return f"The tag is {tag}, but the version in pyproject.toml is {version}: tag the commit that changed it."
    if f"\n## {version}\n" not in changelog:
        return f"CHANGELOG.md has no section {version}: move what is under Unreleased there."
    return ""


if __name__ == "__main__":
    import tomllib  # not in Python 3.10, which the tests run on too

    (tag,) = sys.argv[1:]
    with open(ROOT / "pyproject.toml", "rb") as file:
        pyproject = tomllib.load(file)
    sys.exit(complaint(pyproject, (ROOT / "CHANGELOG.md").read_text("utf-8"), tag))
