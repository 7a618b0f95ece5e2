"""The numbers of a run, as settings. Importing it is quick: the command line's help is made from them."""

from dataclasses import dataclass, field

from minedit.settings import Setting, Settings, setting

TRAIN_STEPS = 1000
STEPS = Setting("DDIM steps", int, 1, TRAIN_STEPS)
SIDE = Setting("of the picture, a multiple of 8", int, 1, 2**14, unit="pixels", none="as trained", late=True)
SEED = Setting("a run each", int, 0, 2**64 - 1)


@dataclass(frozen=True)
class Numbers(Settings):
    """Of a sampling run, and its one text; `loop.Run` is one."""

    steps: int = field(default=50, metadata={"setting": STEPS})
    guidance: float = setting(7.5, "classifier-free guidance scale", low=0)
    eta: float = setting(0.0, "0 deterministic to 1 ancestral sampling", low=0, high=1)
    height: int | None = field(default=None, metadata={"setting": SIDE})
    width: int | None = field(default=None, metadata={"setting": SIDE})
    negative_prompt: str = setting("", "what the picture is not to show: the text that guidance leads away from")
