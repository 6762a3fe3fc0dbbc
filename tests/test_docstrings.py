"""Docstrings of the public classes and functions state the default of each argument that they describe."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import diffusers_pfgm

# An entry begins with the names of its arguments, such as "    first, second: ".
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): ", flags=re.MULTILINE)
ARGUMENTS = re.compile(r"^Args:\n(.*?)(?:\n\n|\Z)", flags=re.MULTILINE | re.DOTALL)


def public_functions() -> Iterator[tuple[str, Any, str]]:
    """The name, the function and the docstring of each public function, class and method of this package."""
    for name in diffusers_pfgm.__all__:
        member = getattr(diffusers_pfgm, name)
        if not getattr(member, "__module__", "").startswith("diffusers_pfgm"):
            continue
        if not inspect.isclass(member):
            yield name, member, inspect.getdoc(member) or ""
            continue
        yield name, member.__init__, inspect.getdoc(member) or ""
        for attribute, value in vars(member).items():
            function = getattr(value, "__func__", value)
            if inspect.isfunction(function) and (attribute == "__call__" or not attribute.startswith("_")):
                yield f"{name}.{attribute}", function, inspect.getdoc(function) or ""


def entries(docstring: str) -> dict[str, str]:
    """The entry of each argument in a docstring."""
    arguments = ARGUMENTS.search(docstring)
    parts = ENTRY.split(arguments.group(1))[1:] if arguments else []
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name.strip("* "): text for names, text in pairs for name in names.split(",")}


def states_default(text: str) -> bool:
    """Whether an entry states a default, refers to another entry, or allows one value only."""
    return "efault" in text or "see `" in text or text.startswith("must be ")


def test_defaults_are_stated() -> None:
    missing = []
    described = 0
    for name, function, docstring in public_functions():
        texts = entries(docstring)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default not in (inspect.Parameter.empty, None) and parameter.name in texts:
                described += 1
                if not states_default(texts[parameter.name]):
                    missing.append(f"{name}({parameter.name}={parameter.default!r})")
    assert not missing and described > 100
