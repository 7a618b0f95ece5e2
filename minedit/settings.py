"""A setting is written once: a dataclass field with its default, range, unit and help.

`setting` makes such a field, `Settings` checks its values. The command line's options and help, what `--from` takes and
docs/methods.md are made from the same fields.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from numbers import Real

from minedit.config import MineditError, shown

SHOWN = 60  # characters of a wrong value
MOST = sys.float_info.max  # an integer may be more
EXACT = 2**53  # integers below are floats, too


@dataclass(frozen=True)
class Setting:
    """What a value may be, and what it does."""

    help: str
    kind: type  # bool, int, float, str; list: texts; tuple: a number or the ends of a span; dict: values of words
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""  # of the number
    choices: tuple[str, ...] = ()  # the texts it may be, none: any; of a bool, beside True and False
    none: str = ""  # what None stands for; empty: None is no value
    late: bool = False  # checked where more is known than the value: a picture's sides, by its model
    values: type = float  # of a dict, which is kept as pairs: float or tuple

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
            what = (
                "words with "
                + {float: "factors, such as {'red': 2}", tuple: "spans, such as {'red': 0.4}"}[self.values]
            )
        elif self.kind is list:
            what = "texts, such as ['red', 'blue bird']"
        elif self.kind in (bool, str):
            what = " or ".join(("True", "False", *self.choices) if self.kind is bool else self.choices) or "a text"
        else:
            among = f", {'from ' * (' to ' in self.range)}{self.range}" if self.range else ""
            what = f"a {'whole' if self.kind is int else 'finite'} number{among}{self.unit and ' '}{self.unit}"
            what += ", or two, such as (0.1, 0.9)" * (self.kind is tuple)
        return what + ", or None" * bool(self.none)

    @property
    def form(self) -> str:
        """What the command line's help writes for a value; of words with values, for one."""
        if self.kind is dict:
            return "WORD=" + {float: "FACTOR", tuple: "X[:X]"}[self.values]
        return {int: "N", float: "X", str: "|".join(self.choices) or "TEXT", list: "WORD[,WORD]", tuple: "X[:X]"}[
            self.kind
        ]

    @property
    def typed(self) -> str:
        """What the command line must say, in words."""
        if self.kind is dict:
            return f"{self.form}, such as " + {float: "red=2", tuple: "red=0.4 or red=0.1:0.9"}[self.values]
        if self.kind is list:
            return f"{self.form}, such as 'red,blue bird'"
        return self.expected.replace("(0.1, 0.9)", "0.1:0.9")

    def check(self, name: str, value: object) -> object:
        """`value`, numpy's numbers as Python's. Raises MineditError, in one line, where it is not `expected`."""
        if isinstance(value, Real) and hasattr(value, "item"):
            value = value.item()
        if self.kind in (dict, list, tuple):
            return {dict: self._pairs, list: self._texts, tuple: self._span}[self.kind](name, value)
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

    def read(self, text: str) -> object:
        """What the command line says; of words with values, one. Raises ValueError or MineditError."""
        if self.none and text == "None":
            return None
        if self.kind is list:
            texts = [part.strip() for part in text.split(",")]
            if not all(texts):
                raise self._wrong("", text)
            return self.check("", texts)
        if self.kind is dict:
            word, value = text.rsplit("=", 1)
            return self.check("", [(word, self._value.read(value))])[0]
        if self.kind is tuple:
            ends = [float(end) for end in text.split(":")]
            return self.check("", ends if len(ends) > 1 else ends[0])
        return self.check("", self.kind(text))

    @property
    def value_name(self) -> str:
        """What one value of a dict is called."""
        return {float: "factor", tuple: "span"}[self.values]

    @property
    def _value(self) -> Setting:
        """One value of a dict."""
        return Setting("", self.values, self.low, self.high)

    def _pairs(self, name: str, value: object) -> tuple[tuple[str | int, object], ...]:
        try:
            pairs = [(word, each) for word, each in (value.items() if isinstance(value, Mapping) else value)]
        except (TypeError, ValueError):
            raise self._wrong(name, value) from None
        index = Setting("", int, 0)
        pairs = [
            (
                word if isinstance(word, str) else index.check(f"a word of {name}", word),
                self._value.check(f"{name} of {word!r}", each),
            )
            for word, each in pairs
        ]
        word, times = max(Counter(word for word, _ in pairs).items(), key=lambda each: each[1], default=("", 0))
        if times > 1:
            raise MineditError(f"{name} has {shown(repr(word), SHOWN)} {times} times; give it one {self.value_name}")
        return tuple(pairs)

    def _texts(self, name: str, value: object) -> tuple[str, ...]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise self._wrong(name, value)
        return tuple(texts)

    def _span(self, name: str, value: object) -> float | tuple[float, float]:
        end = Setting("", float, self.low, self.high)
        try:
            ends = [end.check("", each) for each in (value if isinstance(value, list | tuple) else [value])]
        except MineditError:
            raise self._wrong(name, value) from None
        if not isinstance(value, list | tuple):
            return ends[0]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise self._wrong(name, value)
        return tuple(ends)

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


def own_first(kind: type) -> list[Field]:
    """The fields of a dataclass as a reader wants them: those that it shares with others last."""
    return sorted(fields(kind), key=lambda field: field.name not in kind.__annotations__)


def several(name: str, given: object, kind: type, expected: str) -> tuple:
    """One or several of `kind`, an array's too, as a tuple. Raises MineditError for anything else."""
    found = given.tolist() if hasattr(given, "tolist") else given
    found = (found,) if isinstance(found, kind) else found
    if isinstance(found, Iterable) and not isinstance(found, str | bytes):
        found = tuple(found)
        if all(isinstance(each, kind) and not isinstance(each, bool) for each in found):
            return found
    raise MineditError(f"{name} is {shown(repr(given), SHOWN)}, expected {expected}")


class Settings:
    """Frozen dataclasses of `setting` fields extend this: a wrong value raises MineditError where it is given."""

    def __post_init__(self) -> None:
        for name, each in settings(type(self)).items():
            if not each.late:
                object.__setattr__(self, name, each.check(name, getattr(self, name)))

    def off(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Settings that change nothing now, by those beside which they do not."""
        return {}

    @property
    def idle(self) -> tuple[str, ...]:
        """A note on settings that are not their defaults and have no effect; none where all have."""
        defaults = {field.name: field.default for field in fields(self)}
        found = []
        for others, names in self.off().items():
            if moved := [name for name in names if getattr(self, name) != defaults[name]]:
                beside = " and ".join(f"{name}={getattr(self, name)}" for name in others)
                found.append(f"{', '.join(moved)} beside {beside}")
        return (f"these settings had no effect: {'; '.join(found)}",) if found else ()
