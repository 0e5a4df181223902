"""MkDocs hook: adds files outside `docs/` to the site, so that relative links work there as in the repository.

A link from a page to a file outside `docs/` adds that file to the site, as `repository/PATH`.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
"""Target of a relative Markdown link or image, without its anchor."""
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")


def linked_paths(page: Path) -> list[Path]:
    """Files and folders to which a Markdown file has relative links."""
    return [Path(os.path.normpath(page.parent / target)) for target in LINK.findall(page.read_text(encoding="utf-8"))]


def site_path(path: Path) -> str:
    """The path within the site of a file of the repository."""
    inside = path.relative_to(ROOT).as_posix()
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"repository/{inside}"


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    pending = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ALWAYS)]
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        if files.get_file_from_path(site_path(path)) is None:
            files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
        if path.suffix == ".md":
            pending += linked_paths(path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = Path(page.file.abs_src_path)
    folder = posixpath.dirname(page.file.src_uri) or "."

    def in_site(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[1]))
        # A link to nothing stays, for MkDocs to report.
        return posixpath.relpath(site_path(target), folder) if target.is_file() else match[1]

    return LINK.sub(in_site, markdown)
