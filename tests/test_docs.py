"""The documentation tells the truth: links, pictures, quoted messages, files to fetch, commands, options, modules."""

import argparse
import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

import personalive_core
from personalive_core.cli.main import _parser
from personalive_core.weights import hub

ROOT = Path(__file__).parents[1]
DOCS, HELP = ROOT / "docs", ROOT / "nodes" / "web" / "docs"
CORE = Path(personalive_core.__file__).parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted(DOCS.glob("*.md")),
    *sorted(HELP.glob("*.md")),
]
SOURCES = [*CORE.rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
WEB = CORE / "live" / "web"
COMMANDS = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
VALUE = "\0"  # stands for what a message fills in
LARGEST = 80_000  # bytes of a picture on a help page
LONGEST = 200  # lines of the README

LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTE = re.compile(r'\*\*"(.+?)"\*\*')  # a message of the program, with ... for its values
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@lru_cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links(page):
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


def scripted(script: Path) -> list[str]:
    """Every text in a script of the live page; values replaced."""
    found = re.findall(r'"([^"\n]*)"|`([^`]*)`', script.read_text("utf-8"))
    return [re.sub(r"\$\{[^}]*\}", VALUE, quoted or template) for quoted, template in found]


@lru_cache
def messages() -> list[str]:
    """Every text in the sources but docstrings; values replaced."""
    found = [text for script in WEB.glob("*.js") for text in scripted(script)]
    for source in SOURCES:
        nodes = list(ast.walk(ast.parse(source.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    return found


def pattern(quote: str) -> re.Pattern:
    """What a quoted message matches."""
    return re.compile(".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", quote))), re.DOTALL)


@every_page
def test_quoted_messages_exist(page):
    for quote in QUOTE.findall(page.read_text("utf-8")):
        assert any(pattern(quote).search(message) for message in messages()), quote


def test_troubleshooting_quotes_messages():
    assert len(QUOTE.findall((DOCS / "troubleshooting.md").read_text("utf-8"))) > 20


def test_the_live_page_explains_every_sentence_that_it_can_say():
    quotes = [pattern(quote) for quote in QUOTE.findall((DOCS / "live.md").read_text("utf-8"))]
    sentences = [text for text in scripted(WEB / "words.js") if re.search(r"[.…?]$", text) and not text.startswith(".")]
    assert len(sentences) > 20
    assert not [text for text in sentences if not any(quote.search(text) for quote in quotes)]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LONGEST


def test_every_page_can_be_reached_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(README)}
    assert {page.resolve() for page in PAGES} - linked == {(ROOT / "README.md").resolve()}


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
    text = (DOCS / "installation.md").read_text("utf-8")
    for file in hub.FILES:
        if not file.path.endswith("config.json"):
            (row,) = re.findall(rf"^\| \[.*/{file.repo}/resolve/\w+/{re.escape(file.path)}\).*$", text, re.MULTILINE)
            size = float(re.search(r"([\d.]+) GB", row)[1]) * 1e9
            assert size == pytest.approx(file.size, rel=0.1)


def test_two_commands():
    commands = re.findall(r"^python3 .+$", README, re.MULTILINE)
    assert len(commands) == 2
    demo, test = commands
    assert demo.endswith("-m personalive_core demo")
    assert "-m pytest tests -q" in test
    assert f"<!-- test command -->\n```sh\n{test}\n```" in README


def test_the_citation_has_the_version_of_the_package():
    patterns = {"CITATION.cff": r"^version: (\S+)$", "pyproject.toml": r'^version = "(\S+)"'}
    found = [re.search(p, (ROOT / name).read_text("utf-8"), re.MULTILINE)[1] for name, p in patterns.items()]
    assert found[0] == found[1]


def option_rows(command: str) -> dict[str, str]:
    """The options in a command's tables, or in those of all commands, under each of their names: the default."""
    sections = re.split(r"^## ", (DOCS / "command-line.md").read_text("utf-8"), flags=re.MULTILINE)
    (own,) = (section for section in sections if section.partition("\n")[0] == command)
    found = re.findall(r"^\| (`-.+?) \| (.+?) \|", sections[0] + own, re.MULTILINE)
    return {name: default for names, default in found for name in re.findall(r"`(.+?)`", names)}


def shown_default(action: argparse.Action) -> str | None:
    """What the table must say; None where the parser has no default of its own."""
    if action.required:
        return "required"
    if isinstance(action.default, bool):
        return "off"
    if isinstance(action.default, Path):
        return f"`{action.default.as_posix()}`"
    if isinstance(action.default, float):
        return f"`{action.default:g}`"
    return None if action.default is None else f"`{action.default}`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_in_the_table_with_its_default(command):
    rows, names = option_rows(command), set()
    for action in COMMANDS[command]._actions:
        if action.default is not argparse.SUPPRESS:
            names |= set(action.option_strings)
            for name in action.option_strings:
                assert shown_default(action) in (None, rows.get(name)) and name in rows, name
    assert set(rows) - names <= {"--weights"}  # stands above all commands, and two have no weights


def test_contributing_names_every_module():
    ((_, tree),) = (block for block in FENCE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")) if not block[0])
    core, _, nodes = tree.partition("\nnodes/")
    for text, folder in ((core, CORE), (nodes, ROOT / "nodes")):
        modules = {path.name for path in folder.rglob("*.py")} - {"__init__.py", "__main__.py"}
        assert set(re.findall(r"\w+\.py\b", text)) == modules


def test_the_library_page_shows_the_example():
    (block,) = (code for kind, code in FENCE.findall((DOCS / "library.md").read_text("utf-8")) if kind == "python")
    program = (ROOT / "docs" / "examples" / "animate.py").read_text("utf-8")
    function = next(node for node in ast.parse(program).body if isinstance(node, ast.FunctionDef))
    assert block.rstrip().endswith(ast.get_source_segment(program, function))
    imports = [line for line in block.splitlines() if line.startswith("from ")]
    assert set(imports) <= set(program.splitlines())


def test_the_library_page_names_every_public_name():
    text = (DOCS / "library.md").read_text("utf-8").partition("## Public names")[2]
    assert not [name for name in personalive_core.__all__ if not re.search(rf"`{name}\b", text)]
