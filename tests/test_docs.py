"""README and help pages tell the truth: links, pictures, quoted messages, files to fetch, commands."""

import ast
import re
from pathlib import Path

import pytest

from personalive_core.weights import hub

ROOT = Path(__file__).parents[1]
HELP = ROOT / "nodes" / "web" / "docs"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(HELP.glob("*.md"))]
SOURCES = [*Path(hub.__file__).parents[1].rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
VALUE = "\0"  # stands for what a message fills in
LARGEST = 80_000  # bytes of a picture on a help page

LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTE = re.compile(r'\*\*"(.+?)"\*\*')  # a message of the program, with ... for its values

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links(page):
    text = page.read_text("utf-8")
    for link in LINK.findall(without_code(text)):
        if link.startswith("#"):
            assert link in anchors(text)
        elif not link.startswith("https://"):
            assert (page.parent / link).is_file(), link


def messages() -> list[str]:
    """Every text that the sources hand to an exception, or to anything else; values replaced."""
    trees = (ast.parse(source.read_text("utf-8")) for source in SOURCES)
    calls = (call for tree in trees for call in ast.walk(tree) if isinstance(call, ast.Call))
    found = []
    for argument in (argument for call in calls for argument in call.args):
        if isinstance(argument, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else VALUE for part in argument.values)
            found.append("".join(parts))
        elif isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            found.append(argument.value)
    return found


@every_page
def test_quoted_messages_exist(page):
    known = messages()
    for quote in QUOTE.findall(page.read_text("utf-8")):
        parts = re.split(r"\s*\.\.\.\s*", quote)
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(message) for message in known), quote


def test_troubleshooting_quotes_messages():
    section = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    assert len(QUOTE.findall(section)) > 20


def test_every_node_has_a_help_page_with_a_picture():
    text = "".join(source.read_text("utf-8") for source in (ROOT / "nodes").glob("*.py"))
    ids = set(re.findall(r'node_id="(\w+)"', text))
    assert ids == {page.stem for page in HELP.glob("*.md")}
    for name in ids:
        assert f"(nodes/web/docs/{name}.md)" in README
        assert f"]({name}.webp)" in (HELP / f"{name}.md").read_text("utf-8")
        assert (HELP / f"{name}.webp").stat().st_size < LARGEST


def test_weights_table():
    """Every file to fetch, with its address and size; the settings files are for the command line alone."""
    for file in hub.FILES:
        if not file.path.endswith("config.json"):
            (row,) = re.findall(rf"^\| \[.*/{file.repo}/resolve/\w+/{re.escape(file.path)}\).*$", README, re.MULTILINE)
            size = float(re.search(r"([\d.]+) GB", row)[1]) * 1e9
            assert size == pytest.approx(file.size, rel=0.1)


def test_two_commands():
    commands = re.findall(r"^python3 .+$", README, re.MULTILINE)
    assert len(commands) == 2
    demo, test = commands
    assert demo.endswith("-m personalive_core demo")
    assert "-m pytest tests -q" in test
    assert f"<!-- test command -->\n```sh\n{test}\n```" in README
