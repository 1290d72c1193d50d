"""Paths that name no file because they are written for another program, each with what to do."""

import glob
import os
import re

from ..images.registry import split_selector

__all__ = ["path_problem"]

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def path_problem(path: str, in_list: bool = False) -> str | None:
    """Return why a path that does not exist is not read, with what to do, or None.

    Args:
        path: As given.
        in_list: Whether it is from a list. There, no shell has expanded it.
    """
    problem = _url_problem(path) or (_list_problem(path) if in_list else None)
    if problem is None or os.path.lexists(split_selector(path)[0]):
        return None
    return problem


def _url_problem(path: str) -> str | None:
    scheme = _SCHEME.match(path)
    if scheme is None:
        return None
    if scheme[0].lower() == "file://":
        return "URLs are not read; pass the path after file://"
    return "URLs are not read; download the file and pass its path"


def _list_problem(path: str) -> str | None:
    if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'":
        return "no such file; write the paths of a list without quotes"
    if path.startswith("~"):
        return "no such file; ~ is not expanded in a list, write the whole path"
    if "\n" in path:
        return "no such file; leave out -0 if the paths of the list end with a newline"
    if glob.has_magic(path):
        return "no such file; patterns in a list are not expanded, pass them as arguments"
    return None
