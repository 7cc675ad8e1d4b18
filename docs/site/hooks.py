"""Hooks of the documentation's site: what is generated from the code when it is built, and links into the code."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mkdocs.exceptions import PluginError

from semiovs_jax.runtime.config_keys import Key, read_keys

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")
_COMMAND = re.compile(r"^\| `([a-z_.]+)` \|", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Appends what is generated, and makes links that leave `docs` into text: the site does not have their targets."""
    match page.file.src_uri:
        case "configuration.md":
            markdown += config_tables(read_keys(ROOT / "configs" / "common.py"))
        case "commands.md":
            markdown += command_sections(_COMMAND.findall(markdown))
        case "exactness.md":
            markdown += golden_table(sorted((ROOT / "tests" / "golden").glob("*.npz")))
    return _LINK.sub(lambda link: _as_text(link, page.file.src_uri), markdown)


def config_tables(keys: dict[str, Key]) -> str:
    """The keys of a config in Markdown, a table a section."""
    sections: dict[str, list[str]] = {"config": []}
    for name, key in keys.items():
        if key.is_section:
            sections[f"config.{name}"] = []
        else:
            section = f"config.{name}".rpartition(".")[0]
            value = json.dumps(key.value) if isinstance(key.value, str) else key.value
            sections[section].append(f"| `{name}` | `{value}` | {_escape(key.comment)} |")
    return "\n".join(_tables(sections, keys))


def command_sections(modules: list[str]) -> str:
    """What `--help` of each module prints, in Markdown, without the keys of the config."""
    helps = Path(__file__).with_name("command_helps.py")
    done = subprocess.run([sys.executable, helps, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{helps}: {done.stderr}")
    texts = (text.partition("\nkeys of the config")[0].strip() for text in json.loads(done.stdout).values())
    return "".join(f"\n### {module}\n\n```text\n{text}\n```\n" for module, text in zip(modules, texts, strict=True))


def golden_table(files: list[Path]) -> str:
    """What each golden has, from its metadata, in Markdown."""
    rows = ["| golden | what it has | commit |", "|---|---|---|"]
    for file in files:
        with np.load(file) as arrays:
            meta = json.loads(str(arrays["meta"]))
        commit = str(meta.get("commit", ""))[:8]
        what = _escape(meta["what"].partition(". ")[0])
        rows.append(f"| `{file.name}` | {what} | {commit and f'`{commit}`'} |")
    return "\n".join(rows) + "\n"


def _tables(sections: dict[str, list[str]], keys: dict[str, Key]) -> Iterator[str]:
    for section, rows in sections.items():
        yield f"\n## {section}\n"
        if (key := keys.get(section.removeprefix("config."))) and key.comment:
            yield f"{key.comment}\n"
        if rows:
            yield from ("| key | value | |", "|---|---|---|", *rows)


def _as_text(link: re.Match[str], page: str) -> str:
    if not (ROOT / "docs" / link[2]).exists():
        raise PluginError(f"docs/{page}: {link[2]}: no such file")
    return link[1]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
