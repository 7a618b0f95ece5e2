"""argparse as this command line wants it: mistakes in one line, help with defaults, prompts behind any option."""

import argparse
from typing import NoReturn

from minedit.config import MineditError


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a MineditError, and options of several values leave the prompts behind them alone."""

    def parse_known_args(self, args: list[str], namespace: argparse.Namespace | None = None) -> tuple:
        """Such an option goes, with the values that it can read, behind the prompts that follow."""
        words, held, rest = [], [], list(args)
        while rest and rest[0] != "--":
            word = rest.pop(0)
            action = self._option_string_actions.get(word)
            if action is None or action.nargs not in ("+", "?"):
                if word.startswith("-"):
                    words, held = words + held, []
                words.append(word)
                if action is not None and action.nargs is None and rest:
                    words.append(rest.pop(0))
                continue
            values = []
            while rest and not rest[0].startswith("-") and self._takes(action, rest[0], len(values)):
                values.append(rest.pop(0))
            held += [word, *values]
        return super().parse_known_args([*words, *held, *rest], namespace)

    def _takes(self, action: argparse.Action, word: str, had: int) -> bool:
        if action.nargs == "?":
            return not had and word in action.choices
        try:
            action.type(word)
        except argparse.ArgumentTypeError:
            return not had  # which says what is expected
        return True

    def error(self, message: str) -> NoReturn:
        raise MineditError(f"{message}; see {self.prog} --help")


def parser_of(verb: str, text: str) -> Parser:
    """The parser of `minedit VERB`. text: what it does."""
    return Parser(f"minedit {verb}", description=text, formatter_class=Formatter, allow_abbrev=False)


class Several(argparse.Action):
    """Values of an option that may be given again: those that follow are added to those before, not to its default."""

    def __call__(
        self, parser: Parser, namespace: argparse.Namespace, values: list, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, self.default)
        setattr(namespace, self.dest, [*(() if before is self.default else before), *values])


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults, where there are any."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, []) or "(default:" in action.help
        return action.help if said else super()._get_help_string(action)
