"""What the verbs give back: pictures, how they were made, and what a reader should know of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from PIL.Image import Image
from torch import Tensor

from minedit.files import lora
from minedit.image import difference, psnr
from minedit.inversion.choose import name_of
from minedit.methods import Photo, WordPlan
from minedit.sampling.loop import Run
from minedit.settings import Settings
from minedit.stack.model import Model
from minedit.stack.tokens import Prompt, foreign

# Of 255, mean over a picture. 120 soft edits of the embedded model were 1.3 to 43 apart, 39 unrelated pairs of its
# pictures 35 to 85, nineteen of twenty more than 46. LITTLE is a hundredth of a picture that changes by 50.
LITTLE, MUCH = 0.5, 45


@dataclass(frozen=True, eq=False)
class Again:
    """How a result is drawn again, for what is to be looked at meanwhile (record/). No file keeps it."""

    sd: Model | None = None
    draw: Callable[[], object] | None = None

    def __reduce__(self) -> tuple:
        return Again, ()


@dataclass(frozen=True)
class Generated:
    """What `generate` gives back. `images` and `latents` are in the order of prompts, or of seeds."""

    images: list[Image]
    latents: Tensor  # [B, 4, h, w] float32 on the CPU, what the VAE decodes
    notes: tuple[str, ...] = ()  # what a reader should know of how they were made, a sentence each
    again: Again = field(default=Again(), repr=False, compare=False)

    def __repr__(self) -> str:
        sizes = " ".join(dict.fromkeys("{} x {}".format(*image.size) for image in self.images))
        return f"<{len(self.images)} pictures of {sizes} pixels>"


@dataclass(frozen=True)
class EditResult:
    """What `edit` gives back: the pictures, and all that made them. `word_maps`, `recorded` and `xray` look further."""

    source: Image  # a photograph as it is drawn again, where the method draws it
    edited: Image
    source_latent: Tensor  # [1, 4, h, w] float32 on the CPU, what the VAE decodes
    edited_latent: Tensor
    words: tuple[WordPlan, ...]  # of the target prompt: text, kind, tau
    notes: tuple[str, ...]  # what a reader should know of how the edit was decided, a sentence each
    settings: dict  # JSON values: model, its hash, dtype, attention; the arguments of `edit` that make this again
    seconds: float  # since the call began, as are the rows
    rows: int  # of the UNet, forward, in all passes
    statistics: object  # what the method measured, such as `wordmaps.Statistics`; None where it needs none
    again: Again = field(default=Again(), repr=False, compare=False)

    def __repr__(self) -> str:
        said = (f"{self.settings[name]!r:.60}" for name in ("source", "target"))
        size = "{} x {}".format(*self.edited.size)
        return f"<{' -> '.join(said)} by {self.settings['method']}, seed {self.settings['seed']}, {size} pixels>"


def record(
    sd: Model,
    source: str,
    target: str,
    method: str,
    seed: int,
    run: Run,
    chosen: Settings,
    photo: str | None = None,
    inverse: Settings | None = None,
) -> dict:
    """An edit's settings, as JSON values."""
    sizes = {name: int(getattr(run, name) or sd.config.image_size) for name in ("height", "width")}
    return {
        "model": sd.config.name,
        **({"weights": sd.weights} if sd.weights else {}),
        "dtype": str(sd.dtype).removeprefix("torch."),
        "attention": sd.attention,
        **lora.settings(sd),
        "source": source,
        "target": target,
        "method": method,
        "seed": seed,
        **asdict(run),
        **sizes,
        **asdict(chosen),
        **({"photo": photo} if photo else {}),
        **({"inversion": name_of(inverse), **asdict(inverse)} if inverse else {}),
    }


def redrawn(photo: Photo | None, source: Image) -> tuple[str, ...]:
    """A note on how near the source that was drawn is to the photograph."""
    if not (photo and photo.image):
        return ()
    return (f"the photograph as it is drawn again: PSNR {psnr(photo.image, source):.1f} dB",)


def unsaid(source: Prompt, inverted: bool) -> tuple[str, ...]:
    """A note on a photograph that is inverted by a prompt without words."""
    fault = "the source prompt is empty: the photograph is inverted by no text; write what it shows"
    return (fault,) if inverted and not source.words else ()


def reading(sd: Model, prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Notes on marks that the model reads as plain text, and on words that it was never trained on."""
    marks = dict.fromkeys(mark for prompt in prompts for mark in foreign(prompt.text))
    notes = []
    for file, remedy in ((False, "weigh words with --reweight WORD=FACTOR"), (True, "merge a LoRA with --lora FILE")):
        found = ", ".join(repr(mark) for mark in marks if mark.startswith("<") is file)
        notes += [f"read as plain text, which means nothing to the model: {found}; {remedy}"] if found else []
    words = dict.fromkeys(word for prompt in prompts for word in sd.tokenizer.unknown(prompt))
    return (*notes, *([f"{sd.config.name} was never trained on: {', '.join(words)}"] if words else []))


def change(images: Sequence[Image]) -> tuple[str, ...]:
    """A note on an edit that changed next to nothing, or nearly everything; none where one picture serves as both."""
    apart = difference(images[0], images[-1])
    amount = f"the two pictures differ by {apart:.1f} of 255 on average"
    if apart < LITTLE and len(images) > 1:
        return (f"the edit changed next to nothing: {amount}",)
    return (f"the edit changed nearly the whole picture: {amount}, as unrelated pictures do",) if apart > MUCH else ()
