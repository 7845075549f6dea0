"""The documents of the repository, and what stands in them: fences, headings, links, commands."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(page):
    """A page's text, by its path from the root."""
    return (ROOT / page).read_text("utf-8")


def fences(page):
    """Language and content of each fenced block."""
    return [(match[1], match[2]) for match in _FENCE.finditer(read(page))]


def prose(page):
    """The page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page):
    """Relative targets, those of pictures included."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page))


def anchors(page):
    """What a link may name behind `#`, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in kept}


def words(block):
    """The commands of a shell block, each as its words."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        command = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", "|"):
                found.append(command)
                command = []
            else:
                command.append(word)
        found.append(command)
    return [command for command in found if command]


def commands(page):
    """Every command of a page's shell blocks."""
    return [
        command
        for language, block in fences(page)
        if language == "bash"
        for command in words(block)
    ]
