"""What is installed and released: names and versions agree, and the archives hold what they should."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import personalive_core
from check_release import FIELDS, complaint
from personalive_core.weights.find import SIZES_FILE, find_weights

ROOT = Path(__file__).resolve().parents[1]
CORE = Path(personalive_core.__file__).resolve().parent
COMES_WITH_HOST = {"PIL", "aiohttp", "av", "einops", "numpy", "safetensors", "torch", "tqdm"}
COMES_WITH_HOST |= {"huggingface_hub", "filelock"}  # with transformers
HOST = {"comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "latent_preview", "nodes", "server"}
# Not imported in a host; Triton's kernels are where it is there.
WITHOUT_HOST = {CORE / name for name in ("__main__.py", "pipeline.py", "networks/kernels.py")}

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings tomli
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist, made without network from a copy."""
    pytest.importorskip("setuptools", minversion="77", reason="archives are made by setuptools 77")
    if not (ROOT / "personalive_core").is_dir():
        pytest.skip("the package is installed: there is no source to build")
    source, made = tmp_path_factory.mktemp("source") / "personalive", tmp_path_factory.mktemp("made")
    left_out = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "outputs", "pretrained_weights"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    program = f"from setuptools import build_meta as b; b.build_wheel({str(made)!r}); b.build_sdist({str(made)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    return wheel, sdist


def test_the_version_is_the_changelogs_and_nowhere_else_in_the_code():
    version = PYPROJECT["project"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == version
    assert "Unreleased" not in headings[1:]
    code = [*ROOT.glob("*.py"), *ROOT.glob("nodes/*.py"), *CORE.rglob("*.py")]
    assert not [path for path in code if re.search(r"^__version__|^VERSION\b", path.read_text(encoding="utf-8"), re.M)]


def test_the_wheel_is_the_core_alone(archives: tuple[Path, Path]):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (Parser().parsestr(wheel.read(n).decode()) for n in wheel.namelist() if n.endswith("/METADATA"))
    data = (CORE / "py.typed", *(CORE / "live" / "web").glob("*.*"), *(CORE / "miniature").rglob("*.*"))
    files = (*CORE.rglob("*.py"), *data)
    assert names == {path.relative_to(CORE.parent).as_posix() for path in files}
    assert metadata["Version"] == PYPROJECT["project"]["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]


def test_the_wheel_brings_the_miniature_whole(archives: tuple[Path, Path], tmp_path: Path):
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(tmp_path, [name for name in wheel.namelist() if "/miniature/" in name])
    folder = tmp_path / "personalive_core" / "miniature"
    assert find_weights(folder).missing == () and (folder / SIZES_FILE).is_file()
    assert {path.name for path in (folder / "example").iterdir()} == {"portrait.png", "driving.mp4", "right_answer.mp4"}


def test_the_sdist_runs_the_tests(archives: tuple[Path, Path]):
    with tarfile.open(archives[1]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    folders = ("docs", "locales", "nodes", "personalive_core", "subgraphs", "tests", "tools", "workflows")
    files = [*ROOT.glob("[!.]*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    needed = {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    assert {name for name in needed - names if not name.endswith(".pyc") and "/." not in name} == set()


def test_every_file_named_in_pyproject_is_there():
    project, tools = PYPROJECT["project"], PYPROJECT["tool"]
    named = [project["readme"], *project["license-files"]]
    named += [str(pattern) for pattern in tools["ruff"]["lint"]["per-file-ignores"]]
    assert not [name for name in named if not list(ROOT.glob(name))]
    data = [(p, name) for p, names in tools["setuptools"]["package-data"].items() for name in names]
    assert not [name for package, name in data if not list((CORE.parent / package).glob(name))]
    for entry_point in project["scripts"].values():
        module, _, function = entry_point.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_registry_knows_the_pack_by_a_name_of_its_own():
    name = PYPROJECT["project"]["name"]
    assert "comfyui" not in name.lower()
    assert re.fullmatch(r"[a-z][a-z0-9]*([-._][a-z0-9]+)*", name)
    oldest = re.search(r"^OLDEST = \((.*)\)$", (ROOT / "nodes/compat.py").read_text(encoding="utf-8"), re.M)[1]
    assert PYPROJECT["tool"]["comfy"]["requires-comfyui"] == ">=" + oldest.replace(", ", ".")


def test_the_pack_imports_only_what_comes_with_the_host_and_so_requires_nothing():
    imported = set()
    for path in (ROOT / "__init__.py", *ROOT.glob("nodes/*.py"), *CORE.rglob("*.py")):
        if path in WITHOUT_HOST or any(path.is_relative_to(CORE / room) for room in ("batch", "cli")):
            continue
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                imported.add(statement.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= COMES_WITH_HOST | HOST
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line and not line.startswith("#")]


def test_the_public_names_can_be_imported_and_cost_nothing_before():
    program = (
        "import sys, personalive_core as core; assert 'torch' not in sys.modules;"
        "print(*(getattr(core, name).__name__ for name in core.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CORE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == personalive_core.__all__


def test_only_a_complete_and_consistent_version_is_released():
    version, changelog = "1.2.3", "# Changelog\n\n## Unreleased\n\n## 1.2.3\n\n- New.\n"
    bare = {"project": {"version": version, "urls": {}}, "tool": {"comfy": {}}}
    full = {"project": {"version": version, "urls": {"Repository": "x"}}, "tool": {"comfy": {}}}
    full["tool"]["comfy"] = dict.fromkeys(("PublisherId", "Icon", "Banner"), "x")
    owners = "What the owner fills in, once"
    sentence = complaint(bare, changelog, version)
    assert "lacks Repository, PublisherId, Icon, Banner: " in sentence and owners in sentence
    no_icon = full | {"tool": {"comfy": {"PublisherId": "x", "Banner": "x"}}}
    assert "lacks Icon: " in complaint(no_icon, changelog, version)
    assert "1.2.4" in complaint(full, changelog, "1.2.4")
    assert "CHANGELOG.md" in complaint(full, "## Unreleased\n", version)
    assert not complaint(full, changelog, version)
    _, _, section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"## {owners}\n")
    assert all(f"`{name}`" in section for _, _, name in FIELDS)


def test_only_a_tag_publishes_and_every_action_is_pinned():
    workflows = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")}
    if not workflows:
        pytest.skip("the sdist has no workflows")
    used = [action for text in workflows.values() for action in re.findall(r"uses: ([^.\s]\S*)", text)]
    assert used and not [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)]
    assert [name for name, text in workflows.items() if "REGISTRY_ACCESS_TOKEN" in text] == ["publish.yml"]
    publish = workflows["publish.yml"]
    assert re.search(r"^on:\n  push:\n    tags: .+\n\n", publish, re.MULTILINE)  # and nothing more
    _, _, job = publish.partition("\n  publish:\n")
    assert "needs: [checks, quality]" in job and "environment: registry" in job
