"""The command line: arguments to checked settings to a run. Nothing here computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from vissl_like.utils.errors import SettingsError, UserError, nearest

if TYPE_CHECKING:
    from vissl_like.config.load import LoadedSettings

USER_ERROR = 2
INTERRUPTED = 130
_WITH_TOPIC = ("--help", "-h", "--list")
_PLAIN = ("--show", "--check", "--estimate", "--version")


def main(argv: list[str] | None = None) -> int:
    """Does what the arguments ask for.

    Args:
        argv: arguments without the program's name; None takes those of this process.

    Returns:
        exit status: 0 done, 2 a mistake of the user's (told on stderr), 130 interrupted, else what the run returned.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; without this, Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    flag, topic, settings = _split(arguments)
    if flag in _WITH_TOPIC or not arguments:
        return _about(flag, topic, settings)
    if flag == "--version":
        from vissl_like import __version__

        print(__version__)
        return 0
    from vissl_like.config.load import load_settings

    loaded = load_settings(settings) if flag != "--estimate" else _load_without_data(settings)
    if flag == "--estimate":
        from vissl_like.engines.estimate import estimate

        print(estimate(loaded).text())
        return 0
    if flag == "--check":
        from vissl_like.engines.paths import check_paths

        print(" ".join(filter(None, ["The settings are valid.", check_paths(loaded)])))
        return 0
    if flag == "--show":
        from vissl_like.config.show import show_text

        print(show_text(loaded))
        return 0
    from vissl_like.distributed.launch import launch

    return launch(loaded)


def _load_without_data(settings: list[str]) -> LoadedSettings:
    """Checked settings, in which DATA.TRAIN need not be given: an estimate does not read the images."""
    from vissl_like.config.load import load_settings

    try:
        return load_settings(settings)
    except SettingsError as error:
        key = "DATA.TRAIN.path" if error.problems[0].startswith("DATA.TRAIN.path:") else "DATA.TRAIN"
        if len(error.problems) > 1 or not error.problems[0].startswith(f"{key}: missing"):
            raise
        return load_settings([*settings, f"config.{key}=not_given"])


def _about(flag: str | None, topic: str | None, settings: list[str]) -> int:
    """``--help`` and ``--list``; settings given beside them make their plugins' components known."""
    from vissl_like.config.load import announce_only
    from vissl_like.config.render import USAGE, help_text, list_text

    if flag is None:
        print(USAGE, file=sys.stderr)
        return USER_ERROR
    announce_only(settings)
    text: Callable[[str | None], str] = list_text if flag == "--list" else help_text
    print(text(topic))
    return 0


def _split(arguments: list[str]) -> tuple[str | None, str | None, list[str]]:
    """``(flag, its topic, arguments about settings)``.

    Raises:
        UserError: an option is unknown, or there are two.
    """
    flag, topic, settings = None, None, []
    for argument in arguments:
        if argument in (*_WITH_TOPIC, *_PLAIN):
            if flag is not None and flag != argument:
                raise UserError(f"{flag} and {argument} cannot be given together")
            flag = argument
        elif flag in _WITH_TOPIC and topic is None and "=" not in argument and not argument.startswith("-"):
            topic = argument
        elif argument.startswith("-") and "=" not in argument:
            known = (*_WITH_TOPIC, *_PLAIN)
            raise UserError(f"unknown option {argument!r}.{nearest(argument, known)} Known: {', '.join(known)}.")
        else:
            settings.append(argument)
    return flag, topic, settings


if __name__ == "__main__":
    sys.exit(main())
