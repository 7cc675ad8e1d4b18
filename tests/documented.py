"""The commands of Markdown pages."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"\n#{2,3} ", page.read_text(encoding="utf-8").split(f"# {title}\n")[1])[0]


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of the blocks of a page, in order, each split as a shell does."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (shlex.split(command, comments=True) for command in line.split(" && "))


def modules(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The project's modules that a page runs, in blocks or within the text, and their arguments."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    inline = (shlex.split(command) for command in re.findall(r"`(python -m [^`]+)`", text))
    for command in (*commands(page), *inline):
        if "-m" in command and re.match(
            r"(semiovs_jax|data_pipelines|tests)\b", name := command[command.index("-m") + 1]
        ):
            yield name, command[command.index("-m") + 2 :]
