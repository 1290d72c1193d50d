"""Which subcommand the arguments select. Nothing heavy is imported here."""

import os
from collections.abc import Sequence

from .arguments import build_parser
from .scan_arguments import ScanParser

__all__ = ["after_word"]

# Options that only the subcommand has, so that its name is not the path of an image.
_OWN_OPTIONS = {
    "volume": ("--mask", "--boxes"),
    "audit": ("--fresh",),
    "serve": ("--port", "--host"),
}


def after_word(name: str, arguments: Sequence[str]) -> list[str] | None:
    """Return the arguments of a subcommand, without its name, or None if its name does not select it.

    Its name is the first argument, or the first one that is neither an option nor the value of one. In the second case
    a file or directory of this name is meant if it exists, unless there is an option that only the subcommand has.
    """
    if name not in arguments:
        return None
    if arguments[0] == name:
        return list(arguments[1:])
    actions = build_parser()._option_string_actions | _parser_of(name)._option_string_actions
    position = 0
    while arguments[position].startswith("-") and arguments[position] not in ("-", "--"):
        action = actions.get(arguments[position])
        position += 1 if action is None or action.nargs == 0 else 2
        if position >= len(arguments):
            return None
    if arguments[position] != name:
        return None
    has_own = any(argument.partition("=")[0] in _OWN_OPTIONS[name] for argument in arguments)
    if not has_own and os.path.lexists(name):
        return None
    return [*arguments[position + 1 :], *arguments[:position]]


def _parser_of(name: str) -> ScanParser:
    if name == "volume":
        from .volume_arguments import build_volume_parser

        return build_volume_parser()
    if name == "serve":
        from .serve_arguments import build_serve_parser

        return build_serve_parser()
    from .audit_arguments import build_audit_parser

    return build_audit_parser()
