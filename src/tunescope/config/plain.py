"""YAML as plain values, with the line of each: no tags, no anchors, no surprises such as `no` for false."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from tunescope.errors import ConfigError, did_you_mean

Location = tuple[str | int, ...]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_TEXT = "tag:yaml.org,2002:str"
_NUMBER = re.compile(
    r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Plain values only: numbers (``2e-4`` too), true, false and null are read as such, everything else is text.

    YAML 1.1 also reads ``no`` as false, ``1:30`` as 90 and ``010`` as 8, and wants a dot in ``2e-4``: nobody expects that
    of a list of labels. Tags, anchors, aliases (they can explode) and great depth are refused while the text is read.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.refused: list[tuple[int, str]] = []  # line, what is wrong there
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None:
            self._refuse(event, "YAML anchors and aliases are not allowed in a settings file; write the value out")
        if getattr(event, "tag", None) is not None:
            self._refuse(event, f"YAML tag {event.tag!r} is not allowed in a settings file; write a plain value")
        if self._depth > _MAX_DEPTH:
            raise MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse(self, event: Any, problem: str) -> None:
        self.refused.append((event.start_mark.line + 1, problem))


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 and what `_Loader` would read as something else than text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Without escapes PyYAML folds the rarer line ends to a space.
        return self.represent_scalar(_TEXT, data, style='"' if set(data) & set("\r\x85\u2028\u2029") else None)


_Dumper.add_representer(str, _Dumper.represent_str)

_Loader.yaml_implicit_resolvers = {}
# More digits stay text, and validation names them.
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9]\d{0,17})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:[tT]rue|TRUE|[fF]alse|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|[nN]ull|NULL|)$"), ["~", "n", "N", ""])
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))


def read_text(path: Path) -> str:
    """Returns the text of a settings file.

    Raises:
        ConfigError: it cannot be read, is too long or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)  # not its size: a pipe has none, and a device no end
        if len(content) > _MAX_BYTES:
            raise ConfigError(
                f"{path}: more than {_MAX_BYTES:,} bytes, too long for a settings file; is it a data file?"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path}: no such settings file{did_you_mean(path.name, near)}; `tunescope init` writes one to start from"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, a YAML file is needed") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def parse(text: str, source: str) -> tuple[Any, dict[Location, int | str], list[str]]:
    r"""Reads YAML.

    Args:
        text: one YAML document.
        source: name shown in front of every problem.

    Returns:
        The plain value (None for an empty text), the line of every setting in it, and one line for every key that is not
        text or is set twice.

    Raises:
        ConfigError: not valid YAML, nested too deep, or with tags, anchors or aliases.

    Example:
        >>> parse("seed: 2e1\nlabels: [no, yes]", "a.yaml")[0]
        {'seed': 20.0, 'labels': ['no', 'yes']}
    """
    lines: dict[Location, int | str] = {}
    problems: list[str] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if loader.refused:  # such a node must not be walked: an alias may stand for something that holds it
            raise ConfigError(f"{source}:{line}: {problem}" for line, problem in dict.fromkeys(loader.refused))
        if node is not None:
            _walk(node, (), lines, problems, source)
        return (loader.construct_document(node) if node is not None else None), lines, problems
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{source}:{line}: not valid YAML ({error.problem})") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}:{line}: not valid YAML (character #x{ord(text[error.position]):04x} is not allowed)"
        ) from None


def _walk(node: yaml.Node, where: Location, lines: dict[Location, int | str], problems: list[str], source: str) -> None:
    """Notes the line of every setting; names repeated keys, and takes out keys that are not text."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in list(node.value):
            line = key.start_mark.line + 1
            if key.tag != _TEXT:
                got = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                problems.append(f"{source}:{line}: {got} is not the name of a setting; names are text")
                node.value.remove((key, value))
                continue
            if key.value in seen:
                problems.append(f"{source}:{line}: {key.value!r} is set twice; keep one")
            seen.add(key.value)
            lines[(*where, key.value)] = line
            _walk(value, (*where, key.value), lines, problems, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*where, index), lines, problems, source)


def to_text(values: dict[str, Any]) -> str:
    """Returns plain values as YAML that `parse`, and any reader of YAML 1.1, reads back to the same."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
