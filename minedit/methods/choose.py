"""The methods by name, and the settings of one. A new method is a file and a line in METHODS."""

from collections.abc import Mapping
from dataclasses import fields, replace

from minedit.config import MineditError, shown
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.adapedit_plus import AdapEditPlusConfig
from minedit.methods.fixedseed import FixedSeedConfig
from minedit.methods.flow import FlowConfig
from minedit.methods.freeprompt import FreePromptConfig
from minedit.methods.hedit import HEditConfig
from minedit.methods.instructpix2pix import InstructPix2PixConfig
from minedit.methods.masactrl import MasaCtrlConfig
from minedit.methods.p2p import P2PConfig
from minedit.methods.plugandplay import PlugAndPlayConfig
from minedit.methods.sdedit import SDEditConfig
from minedit.settings import Settings

METHODS: dict[str, type[Settings]] = {  # name → its settings, which `prepare` an edit; the first is the default
    "adapedit": AdapEditConfig,
    "adapedit+": AdapEditPlusConfig,
    "p2p": P2PConfig,
    "masactrl": MasaCtrlConfig,
    "freeprompt": FreePromptConfig,
    "plug-and-play": PlugAndPlayConfig,
    "fixed-seed": FixedSeedConfig,
    "sdedit": SDEditConfig,
    "flow": FlowConfig,
    "h-edit": HEditConfig,
    "instruct-pix2pix": InstructPix2PixConfig,
}
DEFAULT = next(iter(METHODS))


def method_settings(method: str, given: Settings | None, overrides: Mapping[str, object]) -> Settings:
    """The settings of a method, those given or its defaults, with single fields replaced. Raises MineditError."""
    if not isinstance(method, str) or method not in METHODS:
        raise MineditError(f"method is {shown(repr(method))}, expected one of {', '.join(METHODS)}")
    kind = METHODS[method]
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise MineditError(f"{method} has no setting {', '.join(unknown)}; it has {', '.join(names) or 'none'}")
    if given is not None and not isinstance(given, kind):
        raise MineditError(f"{method} got {type(given).__name__}, expected {kind.__name__}")
    found = replace(given or kind(), **overrides)
    if (other := getattr(found, "rules", None)) is not None and other not in list(METHODS):  # flow.py, which knows none
        raise MineditError(f"rules is {shown(repr(other), 60)}, expected one of {', '.join(METHODS)}")
    return found
