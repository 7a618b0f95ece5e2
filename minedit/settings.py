"""A setting is written once: a dataclass field with its default, range, unit and help.

`setting` makes such a field, `Settings` checks its values. The command line's options and help, what `--from` takes and
docs/methods.md are made from the same fields.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real

from minedit.config import MineditError, shown

SHOWN = 60  # characters of a wrong value
MOST = sys.float_info.max  # an integer may be more
EXACT = 2**53  # integers below are floats, too


@dataclass(frozen=True)
class Setting:
    """What a value may be, and what it does."""

    help: str
    kind: type  # bool, int, float, str; dict: factors of words, which are kept as pairs
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""  # of the number
    choices: tuple[str, ...] = ()  # the texts it may be, none: any; of a bool, beside True and False
    none: str = ""  # what None stands for; empty: None is no value
    late: bool = False  # checked where more is known than the value: a picture's sides, by its model

    @property
    def range(self) -> str:
        """ "0 to 1", "0 or more"; empty where any number will do."""
        if self.high > 2**14:  # a limit that nobody meets
            return f"{self.low:g} or more" if self.low > -math.inf else ""
        return f"{self.low:g} to {self.high:g}"

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.kind is dict:
            what = "words with factors, such as {'red': 2}"
        elif self.kind in (bool, str):
            what = " or ".join(("True", "False", *self.choices) if self.kind is bool else self.choices) or "a text"
        else:
            among = f", {'from ' * (' to ' in self.range)}{self.range}" if self.range else ""
            what = f"a {'whole' if self.kind is int else 'finite'} number{among}{self.unit and ' '}{self.unit}"
        return what + ", or None" * bool(self.none)

    def check(self, name: str, value: object) -> object:
        """`value`, numpy's numbers as Python's. Raises MineditError, in one line, where it is not `expected`."""
        if isinstance(value, Real) and hasattr(value, "item"):
            value = value.item()
        if self.kind is dict:
            return self._factors(name, value)
        number = isinstance(value, Real) and not isinstance(value, bool)
        right = {
            bool: isinstance(value, bool) or (isinstance(value, str) and value in self.choices),
            str: isinstance(value, str) and (not self.choices or value in self.choices),
            int: number and isinstance(value, int) and self.low <= value <= self.high,
            float: number and self.low <= value <= self.high and abs(value) <= MOST,
        }
        if not right[self.kind] and not (value is None and self.none):
            raise self._wrong(name, value)
        if (
            self.kind is float
            and number
            and not (isinstance(value, float) or (isinstance(value, int) and abs(value) < EXACT))
        ):
            return float(value)  # so that torch and JSON can take it
        return value

    def _factors(self, name: str, value: object) -> tuple[tuple[str | int, float], ...]:
        try:
            pairs = [(word, factor) for word, factor in (value.items() if isinstance(value, Mapping) else value)]
        except (TypeError, ValueError):
            raise self._wrong(name, value) from None
        index, factor = Setting("", int, 0), Setting("", float)
        pairs = [
            (
                word if isinstance(word, str) else index.check(f"a word of {name}", word),
                factor.check(f"{name} of {word!r}", x),
            )
            for word, x in pairs
        ]
        word, times = max(Counter(word for word, _ in pairs).items(), key=lambda each: each[1], default=("", 0))
        if times > 1:
            raise MineditError(f"{name} has {shown(repr(word), SHOWN)} {times} times; give it one factor")
        return tuple(pairs)

    def _wrong(self, name: str, value: object) -> MineditError:
        try:
            found = repr(value)
            found = shown(found if len(found) <= SHOWN else f"{found[:SHOWN]} ...")
        except (ValueError, RecursionError):  # an integer of more digits than Python writes; lists without end
            found = f"a very long {type(value).__name__}"
        return MineditError(f"{name} is {found}, expected {self.expected}")


def setting(default: object, help: str, kind: type | None = None, **limits: object) -> object:
    """A dataclass field. kind: that of the default if not given; limits: the other fields of `Setting`, by name."""
    return field(default=default, metadata={"setting": Setting(help, kind or type(default), **limits)})


def settings(kind: type) -> dict[str, Setting]:
    """The settings of a dataclass, by name."""
    return {field.name: field.metadata["setting"] for field in fields(kind)}


class Settings:
    """Frozen dataclasses of `setting` fields extend this: a wrong value raises MineditError where it is given."""

    def __post_init__(self) -> None:
        for name, each in settings(type(self)).items():
            if not each.late:
                object.__setattr__(self, name, each.check(name, getattr(self, name)))
