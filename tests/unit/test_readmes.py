"""Every folder's README names each module beside it: who adds a file says there what it is. And its links hold."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
    page
    for part in ("farm", "producer", "worker", "tests", "helm", "docker")
    for page in sorted((ROOT / part).rglob("*.md"))
]
TABLED = [
    page
    for page in PAGES
    if page.name == "README.md"
    and page.relative_to(ROOT).parts[0] in ("farm", "producer", "worker", "tests")
    and re.search(r"^\|.*\bfile\b.*\|$", page.read_text(), re.IGNORECASE | re.MULTILINE)
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_files(folder: Path) -> list[str]:
    """Those that git knows, so that what is being written is not asked for yet."""
    found = subprocess.run(["git", "ls-files", "*.py"], cwd=folder, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return found.stdout.splitlines()
    return [str(path.relative_to(folder)) for path in folder.rglob("*.py")]  # an archive without its history


def modules(folder: Path) -> set[str]:
    """As a README writes them: `name.py`, or `name/` for a folder; tests say in their names what they are."""
    heads = {(Path(name).parts[0], len(Path(name).parts)) for name in python_files(folder)}
    return {
        head if depth == 1 else f"{head}/"
        for head, depth in heads
        if depth > 1 or not re.match(r"__|test_|conftest", head)
    }


@pytest.mark.parametrize("page", TABLED, ids=name_of)
def test_every_module_is_named(page):
    package, text = ".".join(page.relative_to(ROOT).parts[:-1]), page.read_text()

    def named(module: str) -> bool:
        return (
            bool(re.search(rf"(?<!\w){re.escape(module)}", text)) or f"{package}.{module.removesuffix('.py')}" in text
        )

    unnamed = sorted(module for module in modules(page.parent) if not named(module))
    assert not unnamed, f"{name_of(page)} does not say what these are: {unnamed}"


def test_a_module_that_is_not_named_would_be_found():
    assert {"renderer.py", "engine/"} <= modules(ROOT / "worker")
    assert "nobody.py" not in modules(ROOT / "worker")
    names = {name_of(page) for page in TABLED}
    assert {f"{part}/README.md" for part in ("farm", "producer", "worker", "worker/engine", "tests")} <= names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
