"""What is wrong with a config, in one line: the innermost key that does not fit, and the nearest."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is most like a mistyped one, or at all of them."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(choices) or 'nothing'}"


def diagnose(arguments: Sequence[str], options: Iterable[str], message: str) -> str:
    """Say why the parser refused the command line.

    The parser reports a wrong key deep inside nested classes as a page of unions that do not match; this
    looks at each class of the config by itself and reports the innermost one that does not fit.

    Args:
        arguments: The words of the command line.
        options: Dotted keys that the command knows.
        message: What the parser said, for what is not about a class.
    """
    unknown = re.search(r"not accept option '([^']+)'|unrecognized arguments: --([^\s=]+)", message)
    for source, config in _configs(arguments):
        for key, value in config.items():
            found = _look(value, key)
            if found is not None:
                return f"{source}: {found}"
    if unknown is not None:
        return _unknown_option(unknown[1] or unknown[2], list(options))
    wrong = _wrong_value(message)
    if wrong is not None:
        return wrong
    lines = [line.strip(" -") for line in message.strip().splitlines()]
    return " ".join([line for line in lines if line][:2]) or "the command line could not be parsed"


def _wrong_value(message: str) -> str | None:
    """A value that is none of what its option takes, out of the parser's page about a union of kinds."""
    key, value = re.search(r'Parser key "([^"]+)"', message), re.search(r"Given value: (.*)", message)
    if key is None or value is None:
        return None
    words, kinds = [], []
    for literal, kind in re.findall(r"Expected an? (?:typing\.Literal\[(.+?)\]|<class '(\w+)'>)", message):
        words += re.findall(r"[\w.-]+", literal)
        kinds += {"": [], "NoneType": ["null"]}.get(kind, [kind])
    close = difflib.get_close_matches(value[1], words, n=1, cutoff=0.6)
    takes = ", ".join(dict.fromkeys([*words, *kinds]))
    hint = f"did you mean {close[0]}?" if close else f"it takes {takes}"
    return f"{key[1]}: {value[1]!r} does not fit: {hint}" if takes else None


def _unknown_option(key: str, options: list[str]) -> str:
    """Compare the first part of a dotted key that no option begins with."""
    parts = key.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if not any(option == prefix or option.startswith(prefix + ".") for option in options):
            parent = ".".join(parts[: depth - 1])
            start = f"{parent}." if parent else ""
            siblings = {option[len(start) :].split(".")[0] for option in options if option.startswith(start)}
            return f"unknown key {prefix!r}: {nearest(parts[depth - 1], siblings)}"
    return f"unknown key {key!r}"


def _configs(arguments: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The config files that the command line names, then all of them with its dotted keys laid over."""
    configs: list[tuple[str, dict[str, Any]]] = []
    dotted: list[tuple[str, str]] = []
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in pairwise(words):
        if option in ("--config", "-c"):
            if not Path(value).exists():
                beside = [path.name for path in Path(value).parent.glob("*.yaml")]
                close = difflib.get_close_matches(Path(value).name, beside, n=1, cutoff=0.6)
                hint = f": did you mean {close[0]}?" if close else ""
                raise ValueError(f"--config: there is no {value}{hint}")
            if Path(value).is_file():
                content = _read(value)
                if isinstance(content, dict):
                    configs.append((value, content))
        elif option.startswith("--"):
            dotted.append((option.removeprefix("--"), value))
    whole: dict[str, Any] = {}
    for _, content in configs:
        _overlay(whole, copy.deepcopy(content))
    for key, value in dotted:
        _set(whole, key.split("."), yaml.safe_load(value))
    return [*configs, ("command line", whole)]


def _read(path: str) -> Any:
    """The content of a config file.

    Raises:
        ValueError: It is no YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _overlay(below[key], value)
        else:
            below[key] = value


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Set what a dotted key names; a word given for an object is its class."""
    for key in path[:-1]:
        below: Any = config.setdefault(key, {})
        if not isinstance(below, dict):
            return
        config = below
    below = config.get(path[-1])
    if isinstance(value, str) and isinstance(below, dict) and "class_path" in below:
        below["class_path"] = value
    else:
        config[path[-1]] = value


def _look(node: Any, path: str) -> str | None:
    """The innermost misfit below a node of a config, or None."""
    if isinstance(node, list):
        pairs: Iterable[tuple[str, Any]] = ((f"{path}[{i}]", item) for i, item in enumerate(node))
    elif isinstance(node, dict):
        pairs = ((f"{path}.{key}", item) for key, item in node.items())
    else:
        return None
    for name, item in pairs:
        found = _look(item, name)
        if found is not None:
            return found
    if isinstance(node, dict) and isinstance(node.get("class_path"), str):
        return _look_at_class(node, path)
    return None


def _look_at_class(node: dict[str, Any], path: str) -> str | None:
    extra = set(node) - {"class_path", "init_args", "dict_kwargs"}
    if extra:
        key = min(extra)
        return f"unknown key '{path}.{key}': {nearest(key, ['class_path', 'init_args'])}"
    module_name, _, class_name = node["class_path"].rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError):
        return f"{path}.class_path: there is no module {module_name!r}"
    found = getattr(module, class_name, None)
    if found is None:
        names = [name for name, value in vars(module).items() if inspect.isclass(value)]
        return f"{path}.class_path: {module_name} has no {class_name!r}: {nearest(class_name, names)}"
    given = node.get("init_args") or {}
    known = inspect.signature(found).parameters
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in given:
        if key not in known and not variadic:
            return f"unknown key '{path}.init_args.{key}': {class_name}: {nearest(key, known)}"
    return _misfit(found, given, f"{path}.init_args")


def _misfit(found: type, given: dict[str, Any], path: str) -> str | None:
    """What the parser says of one class by itself; optimizers and schedules lack their first argument."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        skip = {"params", "optimizer"}
        parser.add_class_arguments(
            found, fail_untyped=False, skip=skip & set(inspect.signature(found).parameters)
        )
        parser.parse_object(given)
    except (ArgumentError, TypeError, ValueError) as error:
        return _essence(str(error), found, path)
    return None


def _essence(message: str, found: type, path: str) -> str:
    """The innermost complaint in the parser's account of a class that does not fit."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    keys = [match[1] for line in lines if (match := re.fullmatch(r'Parser key "([^"]+)":', line))]
    inner = [match[1] for line in lines if (match := re.search(r"given class_path '([^']+)'", line))]
    unknown = re.search(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'", message)
    if unknown is None:
        expected = next((line for line in lines if line.startswith("Expected")), lines[-1])
        expected = re.sub(r"<class '([^']+)'>", r"\1", expected).replace("a typing.Literal", "one of ")
        value = next((line for line in lines if line.startswith("Given value:")), "")
        return f"{'.'.join([path, *keys])}: {expected}{'. Got value' + value[11:] if value else ''}"
    holder: Any = found
    if inner:
        module, _, name = inner[-1].rpartition(".")
        holder = getattr(importlib.import_module(module), name)
    if unknown[1] is not None:
        keys += unknown[1].split(".")
        for key in unknown[1].split("."):
            holder = _class_of(typing.get_type_hints(holder.__init__).get(key))
    known = [] if holder is None else list(inspect.signature(holder).parameters)
    return f"unknown key '{'.'.join([path, *keys, unknown[2]])}': {nearest(unknown[2], known)}"


def _class_of(hint: Any) -> Any:
    """The class in an optional annotation, or None."""
    return next((part for part in (hint, *typing.get_args(hint)) if inspect.isclass(part)), None)
