"""Errors addressed to the person who started the run: what was got, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend; shown as a message without a traceback."""


class SettingsError(UserError):
    """One or more settings are wrong; ``problems`` holds a message for each."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        heading = "1 problem in the settings:" if len(problems) == 1 else f"{len(problems)} problems in the settings:"
        super().__init__("\n".join([heading, *(f"  {number}. {text}" for number, text in enumerate(problems, 1))]))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest allowed name, or an empty string."""
    by_folded = {candidate.casefold(): candidate for candidate in allowed}
    found = difflib.get_close_matches(str(name).casefold(), list(by_folded), n=1, cutoff=0.55)
    return f" Did you mean '{by_folded[found[0]]}'?" if found else ""
