"""The inversions by name. A new one is a file and a line in INVERSIONS. Importing it is quick, as for the methods."""

from collections.abc import Mapping
from dataclasses import asdict, fields

from minedit.config import MineditError, shown
from minedit.inversion.ddim import DDIMConfig
from minedit.inversion.direct import DirectConfig
from minedit.inversion.edict import EDICTConfig
from minedit.inversion.friendly import EditFriendlyConfig
from minedit.inversion.negative import NegativePromptConfig
from minedit.inversion.nulltext import NullTextConfig
from minedit.settings import Settings

INVERSIONS: dict[str, type[Settings]] = {  # name → its settings, which `prepare` a run; the first is the default
    "direct": DirectConfig,
    "ddim": DDIMConfig,
    "null-text": NullTextConfig,
    "negative-prompt": NegativePromptConfig,
    "edit-friendly": EditFriendlyConfig,
    "edict": EDICTConfig,
}
DEFAULT = next(iter(INVERSIONS))


def inversion_settings(
    image: bool, method: type[Settings] | None, name: str | None, overrides: Mapping[str, object]
) -> tuple[Settings | None, dict[str, object]]:
    """The settings of the inversion, None where there is none; and the overrides that are not its own.

    image: whether there is one to edit; name: the inversion's, None for the default. Raises MineditError.
    """
    if not image or not getattr(method, "inverts", True):
        if name is None:
            return None, dict(overrides)
        why = "the method takes a photograph as it is" if image else "there is no image to invert"
        raise MineditError(f"inversion is {shown(repr(name), 60)}, and {why}; omit it")
    name = DEFAULT if name is None else name
    if not isinstance(name, str) or name not in INVERSIONS:
        raise MineditError(f"inversion is {shown(repr(name), 60)}, expected one of {', '.join(INVERSIONS)}")
    own = {field.name for field in fields(INVERSIONS[name])} & overrides.keys()
    left = {key: value for key, value in overrides.items() if key not in own}
    return INVERSIONS[name](**{key: overrides[key] for key in own}), left


def name_of(inverse: Settings) -> str:
    return next(name for name, kind in INVERSIONS.items() if kind is type(inverse))


def arguments(inverse: Settings | None) -> dict[str, object]:
    """An inversion and its settings, as arguments of `edit`; none without one."""
    return {"inversion": name_of(inverse), **asdict(inverse)} if inverse else {}
