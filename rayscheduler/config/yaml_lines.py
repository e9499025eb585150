"""A YAML or JSON file as plain data that knows, for every value, the line it stands on.

Rules of this file: whatever the bytes are, the only error that leaves is ConfigError. Unquoted scalars
stay text (`Plain`). Files are input: their size, their depth and what their aliases unfold to are bounded,
and the parser's events are walked with a stack, never by recursion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rayscheduler.config.values import Path, Plain, Wrong, path_text, shown
from rayscheduler.errors import ConfigError

FILE_BYTES_MAX = 10 * 2**20
DEPTH_MAX = 50
UNFOLDED_MAX = 1_000_000  # values that all aliases of a file together may stand for
# What pydantic puts into the path of an error beside keys and indices; the last two say which kind an entry is of.
MODEL_STEP, ADAPTER_STEP = "[model]", "[adapter]"
_NO_STEPS = frozenset({"[key]", MODEL_STEP, ADAPTER_STEP})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG + kind for kind in ("int", "float", "bool", "null"))

Section = TypeVar("Section", bound=BaseModel)


class Document:
    """The data of one file, and the line of each of its values."""

    def __init__(self, file: str, data: object, lines: _Lines | None, text: str) -> None:
        self.file = file
        self.data = data
        self._lines = lines
        self._text = text

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of the nearest thing around it that the file has."""
        if self._lines is None:
            self._lines = _lines_of_json(self.file, self._text)
        return self._lines.find(path)

    def wrong(self, path: Path, what: str, fix: str) -> ConfigError:
        """The error to raise about the value at `path`."""
        told = f"{path_text(path)}: {what}" if path else what
        return ConfigError(self.file, self.line(path), told, fix)

    def parse(self, section: type[Section], path: Path = ()) -> Section:
        """The whole document as a `section`; what pydantic finds wrong becomes one ConfigError."""
        try:
            return section.model_validate(self.data)
        except ValidationError as error:
            raise self._first(error, path) from None

    def _first(self, error: ValidationError, path: Path) -> ConfigError:
        """Of all that is wrong, what stands first in the file."""
        found = []
        for number, detail in enumerate(error.errors(include_url=False)):
            loc = tuple(step for step in detail["loc"] if step not in _NO_STEPS)
            wrong = _wrong_of(detail)
            where = (*path, *loc, *wrong.at)
            found.append((self.line(where), number, where, wrong))
        _, _, where, wrong = min(found, key=lambda one: one[:2])
        return self.wrong(where, wrong.what, wrong.fix)


def load_file(path: str, bytes_max: int = FILE_BYTES_MAX) -> Document:
    """The document in a file; ConfigError if it cannot be read or is not one YAML or JSON document."""
    try:
        with open(path, "rb") as file:
            content = file.read(bytes_max + 1)
    except FileNotFoundError:
        raise ConfigError(path, None, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise ConfigError(path, None, "is a directory", "name a file in it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(path, None, f"cannot be read: {why}", "check the path and its permissions") from None
    if len(content) > bytes_max:
        limit = f"{bytes_max // 2**20} MiB"
        raise ConfigError(path, None, f"is larger than {limit}", f"split it, or keep it under {limit}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, line, "is not UTF-8 text", "save the file as UTF-8") from None
    return load_text(text, path)


def load_text(text: str, file: str) -> Document:
    """The document in `text`; `file` is what errors call it."""
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(file, line, f"holds the character U+{ord(bad.group()):04X}", "remove it")
    as_json = _read_json(text)
    if as_json is not None and not as_json.repeats:
        return Document(file, as_json.data, None, text)
    data, lines = _Builder(file, text if as_json is None else _without_tabs(text)).build()
    return Document(file, data, lines, text)


def _wrong_of(detail: Any) -> Wrong:
    """What one of pydantic's errors says, in our words."""
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, Wrong):
        return error
    value = detail["input"]
    if detail["type"] == "list_type":
        example = f"[{value}]" if isinstance(value, str) and len(value) < 40 else "[a, b]"
        return Wrong(f"{shown(value)} is not a list", f"write for example {example}")
    if detail["type"] == "dict_type":
        return Wrong(f"{shown(value)} is not a mapping", "write for example {key: value}")
    return Wrong(f"{shown(value)} is not right here: {detail['msg']}", "see the description of this key")


# ---- JSON: read by its own parser, because YAML's differs in numbers, tabs and escapes


class _Json(NamedTuple):
    data: object
    repeats: bool  # a key stands twice in a mapping: YAML's parser knows the line


def _read_json(text: str) -> _Json | None:
    """What `text` says if it is a JSON object."""
    if not text.lstrip().startswith("{"):
        return None
    repeated = []

    def mapping(pairs: list[tuple[str, object]]) -> dict[str, object]:
        built = dict(pairs)
        if len(built) != len(pairs):
            repeated.append(True)
        return built

    def constant(name: str) -> object:
        raise ValueError(name)

    try:
        data = json.loads(text, object_pairs_hook=mapping, parse_int=Plain, parse_float=Plain, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return _Json(data, bool(repeated))


def _lines_of_json(file: str, text: str) -> _Lines:
    """The lines of a document that JSON's parser has read, from YAML's, which knows them."""
    try:
        return _Builder(file, _without_tabs(text)).build()[1]
    except ConfigError:
        return _Lines(None)


def _without_tabs(text: str) -> str:
    """JSON allows tabs between values only, so that replacing them cannot change a string."""
    return text.replace("\t", " ")


# ---- YAML


class _Lines:
    """Lines of keys and items, by the identity of the container that holds them."""

    def __init__(self, root: object) -> None:
        self.root = root
        self.starts: dict[int, int] = {}
        self.inside: dict[int, dict[str, int] | list[int]] = {}

    def find(self, path: Path) -> int:
        at = self.root
        line = self.starts.get(id(at), 1)
        for step in path:
            inside = self.inside.get(id(at))
            if inside is None:
                break
            try:
                line = inside[step]  # type: ignore[index]
                at = at[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                break
        return line


class _Open:
    """A mapping or list whose end has not come yet."""

    __slots__ = ("anchor", "is_mapping", "key", "key_line", "line", "lines", "merges", "value", "weight")

    def __init__(self, is_mapping: bool, anchor: str | None, line: int) -> None:
        self.is_mapping = is_mapping
        self.value: Any = {} if is_mapping else []
        self.lines: Any = {} if is_mapping else []
        self.anchor = anchor
        self.line = line
        self.weight = 1
        self.key: str | None = None
        self.key_line = 0
        self.merges: list[dict[str, object]] = []


class _Builder:
    """Data from the events of YAML's parser. `_Open` containers wait on a stack."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[object, int]] = {}
        self.unfolded = 0
        self.documents = 0
        self.root: object = None
        self.table = _Lines(None)

    def build(self) -> tuple[object, _Lines]:
        try:
            for event in _events(self.text):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            problem, mark = error.problem or error.context or "", error.problem_mark or error.context_mark
            if error.context and error.context_mark and mark and error.context_mark.line != mark.line:
                problem += f", {error.context} from line {error.context_mark.line + 1}"
            raise self._broken(problem, mark.line + 1 if mark else None) from None
        except (yaml.YAMLError, ValueError) as error:
            raise self._broken(str(error), None) from None
        if not self.documents:
            raise ConfigError(self.file, 1, "the file is empty", "write at least `models:` and a list of models")
        self.table.root = self.root
        return self.root, self.table

    def _broken(self, problem: str, line: int | None) -> ConfigError:
        lines = self.text.splitlines() or [""]
        line = line and max(1, min(line, len(lines)))
        fix = "check indentation, brackets and quotes at and above this line"
        if line is not None and lines[line - 1].lstrip(" ").startswith("\t"):
            fix = "indent with spaces, not with tabs"
        return ConfigError(self.file, line, f"broken YAML: {problem}", fix)

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._opened(event, kind is yaml.MappingStartEvent)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._closed()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self.documents += 1
            if self.documents > 1:
                line = event.start_mark.line + 1
                raise ConfigError(self.file, line, "a second YAML document starts", "keep one document in a file")

    def _scalar(self, event: Any) -> None:
        text, line = event.value, event.start_mark.line + 1
        value: object = text
        if event.tag is None or event.tag in _SCALAR_TAGS:
            if event.implicit[0] or event.tag is not None:
                value = None if text in _NULLS else Plain(text)
        elif event.tag not in ("!", _TAG + "str"):
            raise self._tagged(event.tag, line)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1)
        self._add(value, line, 1)

    def _tagged(self, tag: str, line: int) -> ConfigError:
        return ConfigError(self.file, line, f"the YAML tag {shown(tag)} means nothing here", "remove it")

    def _opened(self, event: Any, is_mapping: bool) -> None:
        line = event.start_mark.line + 1
        if event.tag not in (None, "!", _TAG + ("map" if is_mapping else "seq")):
            raise self._tagged(event.tag, line)
        if len(self.stack) >= DEPTH_MAX:
            raise ConfigError(self.file, line, f"is nested deeper than {DEPTH_MAX} levels", "flatten it")
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)  # an alias inside would make it contain itself
        self.stack.append(_Open(is_mapping, event.anchor, line))

    def _closed(self) -> None:
        done = self.stack.pop()
        for source in done.merges:  # `<<: *defaults`: what is said here wins over what is merged in
            lines: Any = self.table.inside[id(source)]
            for key, value in source.items():
                if key not in done.value:
                    done.value[key] = value
                    done.lines[key] = lines[key]
        self.table.starts[id(done.value)] = done.line
        self.table.inside[id(done.value)] = done.lines
        if done.anchor is not None:
            self.anchors[done.anchor] = (done.value, done.weight)
        self._add(done.value, done.line, done.weight)

    def _alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if event.anchor not in self.anchors:
            what = f"*{event.anchor} has no finished &{event.anchor} before it"
            raise ConfigError(self.file, line, what, f"write &{event.anchor} at the value that it stands for")
        value, weight = self.anchors[event.anchor]
        self.unfolded += weight
        if self.unfolded > UNFOLDED_MAX:
            what = f"aliases unfold to more than {UNFOLDED_MAX} values"
            raise ConfigError(self.file, line, what, "write the values out, or use fewer aliases")
        self._add(value, line, weight)

    def _add(self, value: object, line: int, weight: int) -> None:
        if not self.stack:
            self.root = value
            return
        into = self.stack[-1]
        into.weight += weight
        if not into.is_mapping:
            into.value.append(value)
            into.lines.append(line)
        elif into.key is None:
            into.key = self._key(value, line, into)
            into.key_line = line
        elif type(into.key) is Plain and into.key == "<<":
            into.merges.extend(self._merged(value, line))
            into.key = None
        else:
            key = str(into.key)
            into.value[key] = value
            # A list below its key starts a line later; people look for the key.
            into.lines[key] = into.key_line if isinstance(value, (dict, list)) else line
            into.key = None

    def _key(self, value: object, line: int, into: _Open) -> str:
        if not isinstance(value, str):
            what = "a key is empty" if value is None else f"{shown(value)} is used as a key"
            raise ConfigError(self.file, line, what, "write a name before the colon")
        if value in into.value:
            first = into.lines[value]
            what = f"the key {shown(value)} stands twice, first in line {first}"
            raise ConfigError(self.file, line, what, "keep one of them")
        return value

    def _merged(self, value: object, line: int) -> list[dict[str, object]]:
        sources: list[dict[str, object]] = []
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                what = f"<< merges mappings, not {shown(source)}"
                raise ConfigError(self.file, line, what, "write for example <<: *defaults")
            sources.append(source)
        return sources


def _events(text: str) -> Iterator[yaml.Event]:
    """The parser's events: libyaml's where it is installed (ten times as fast), else PyYAML's own."""
    parser: Any
    try:
        from yaml.cyaml import CParser  # type: ignore[attr-defined]
    except ImportError:
        parser = _PythonParser(text)
    else:
        parser = CParser(text)
    try:
        while parser.check_event():
            yield parser.get_event()
    finally:
        parser.dispose()


class _PythonParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
