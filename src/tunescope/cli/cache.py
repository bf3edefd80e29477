"""The commands of the activation cache: what it holds, whether it is as it was written, and emptying it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tunescope.cli.shared import AsJson, open_console, print_json

cache_app = typer.Typer(
    help="The activation cache: hidden states that tuning reads instead of computing them again.", no_args_is_help=True
)
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="The cache folder; default: the one in the user's cache.", show_default=False),
]


@cache_app.command("list")
def cache_list(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show what the cache holds, last used first."""
    from tunescope.engine.shelves import stored

    root = _root(folder)
    rows = [
        {
            "folder": one.folder.name,
            "base_sha256": one.shelf.base_sha256 if one.shelf else None,
            "block": one.shelf.block if one.shelf else None,
            "dtype": one.shelf.dtype if one.shelf else None,
            "numerics": one.shelf.numerics if one.shelf else None,
            "shards": one.n_shards,
            "examples": one.n_entries,
            "size_bytes": one.size_bytes,
            "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.used)) if one.used else None,
        }
        for one in stored(root)
    ]
    if as_json:
        print_json({"folder": str(root), "size_bytes": sum(int(str(r["size_bytes"])) for r in rows), "shelves": rows})
        return
    from rich.table import Table

    table = Table("base", "at the input of", "format", "examples", "size", "last used", box=None)
    for row in rows:
        known = row["base_sha256"] is not None
        table.add_row(
            str(row["base_sha256"])[:12] if known else "cannot be read",
            f"block.{row['block']}" if known else "",
            str(row["dtype"] or ""),
            f"{row['examples']:,}",
            _size(int(str(row["size_bytes"]))),
            str(row["used"] or "never"),
        )
    if rows:
        open_console(stderr=False).print(table)
    total = _size(sum(int(str(row["size_bytes"])) for row in rows))
    print(f"{total} in {root}" if rows else f"nothing in {root}")


@cache_app.command("verify")
def cache_verify(
    folder: Folder = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the files in which something is damaged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every entry and compare it with its hash; exit code 5 if one differs."""
    from tunescope.engine import shelves
    from tunescope.errors import IntegrityError

    root = _root(folder)
    checked = shelves.verify(root)
    removed = [str(shard.stem) for shard in checked.damaged if remove and shelves.remove(shard)]
    if as_json:
        print_json(
            {
                "folder": str(root),
                "examples": checked.n_entries,
                "size_bytes": checked.n_bytes,
                "problems": list(checked.problems),
                "removed": removed,
            }
        )
    else:
        print(f"{checked.n_entries:,} examples ({_size(checked.n_bytes)}) in {root} are as they were written")
    left = [
        text for text, shard in zip(checked.problems, checked.damaged, strict=True) if str(shard.stem) not in removed
    ]
    if removed:
        print(f"removed {len(removed)} damaged shards; what was in them is computed again", file=sys.stderr)
    if left:
        raise IntegrityError(
            [f"{text}; tuning drops such entries, `tunescope cache verify --remove` removes them" for text in left]
        )


@cache_app.command("clear")
def cache_clear(
    folder: Folder = None,
    base: Annotated[
        str, typer.Option("--base", help="Only states of the base model whose hash begins so.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Empty the cache; what a running process uses stays. Nothing is lost but time."""
    from tunescope.engine import shelves
    from tunescope.errors import RunError

    root = _root(folder)
    known = sorted({one.shelf.base_sha256[:12] for one in shelves.stored(root) if one.shelf})
    if base and not any(sha.startswith(base[:12]) for sha in known):
        raise RunError(
            f"{root}: holds no states of a base whose hash begins with {base!r}; it has {', '.join(known) or 'none'}"
        )
    gone, kept = shelves.clear(root, base=base)
    if as_json:
        print_json({"folder": str(root), "removed_bytes": gone, "kept_bytes": kept})
        return
    print(f"removed {_size(gone)} from {root}")
    if kept:
        print(f"{_size(kept)} stay: a running process uses them")


def _root(folder: Path | None) -> Path:
    from tunescope.engine.shelves import default_root
    from tunescope.errors import RunError

    if folder is not None and not folder.is_dir():
        raise RunError(f"{folder}: no such folder")
    return folder or default_root()


def _size(count: int) -> str:
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} bytes"
