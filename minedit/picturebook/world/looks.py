"""What a figure can be: the poses, colours and things of each subject, and the looks that no caption names."""

from dataclasses import dataclass

from minedit.picturebook.world.draw import Colour, Point, frame, polar, stream

PEOPLE = ("boy", "girl")
HUMAN_POSES = ("standing", "sitting", "walking", "running", "jumping", "waving", "lying")
ANIMAL_POSES = ("standing", "sitting", "walking", "running", "jumping", "lying")
POSES: dict[str, tuple[str, ...]] = {
    "boy": HUMAN_POSES,
    "girl": HUMAN_POSES,
    "dog": ANIMAL_POSES,
    "cat": ANIMAL_POSES,
    "horse": ("standing", "walking", "running", "jumping", "lying"),
    "bird": ("standing", "flying", "spreading wings"),
}
CLOTHES: dict[str, Colour] = {
    "red": (214, 58, 52),
    "blue": (52, 96, 204),
    "green": (48, 152, 76),
    "yellow": (246, 206, 58),
    "purple": (136, 74, 168),
}
FUR: dict[str, Colour] = {
    "brown": (140, 90, 52),
    "black": (52, 50, 58),
    "white": (242, 238, 230),
    "gray": (150, 152, 160),
    "orange": (232, 142, 58),
}
TINTS: dict[str, Colour] = CLOTHES | FUR
FEATHERS: dict[str, Colour] = {name: TINTS[name] for name in ("red", "blue", "yellow", "white", "black")}
HELD: dict[str, tuple[str, ...]] = {
    "boy": ("hat", "cup", "balloon", "umbrella"),
    "girl": ("hat", "cup", "balloon", "umbrella"),
    "dog": ("hat",),
    "cat": ("hat",),
    "horse": ("hat",),
    "bird": (),
}

SKIN: tuple[Colour, ...] = ((250, 214, 178), (232, 186, 144), (190, 134, 96), (140, 94, 66))
HAIR: tuple[Colour, ...] = ((64, 44, 34), (120, 76, 42), (222, 176, 92), (36, 34, 40), (170, 84, 46))
TROUSERS: tuple[Colour, ...] = ((62, 76, 116), (98, 88, 80), (84, 84, 94), (52, 60, 72))
THING: tuple[Colour, ...] = ((230, 120, 60), (70, 160, 170), (220, 90, 150), (110, 120, 200))


@dataclass(frozen=True)
class Look:
    """Everything about a figure that no caption names. The thing is what it holds or wears."""

    skin: Colour
    hair: Colour
    trousers: Colour
    thing: Colour
    tilt: float  # degrees, of the head; the torso follows a little


def look(seed: int) -> Look:
    """The look that goes with a seed."""
    rng = stream(seed, "look")
    return Look(rng.choice(SKIN), rng.choice(HAIR), rng.choice(TROUSERS), rng.choice(THING), rng.uniform(-4, 4))


@dataclass(frozen=True)
class Figure:
    """A posed subject and where it stands.

    In the drawing of figures lengths are shares of `height`; angles are degrees from straight down, positive towards
    the side the figure faces.
    """

    subject: str
    pose: str
    tint: Colour  # of clothes, fur or feathers
    held: str | None
    feet: Point  # pixels: on the ground, below the middle of the body
    height: float  # pixels, standing
    look: Look

    @property
    def turn(self) -> float:
        """Degrees by which all angles are turned: a person lies as one stands, on the back."""
        return -90.0 if self.pose == "lying" and self.subject in PEOPLE else 0.0

    def at(self, dx: float, dy: float) -> Point:
        """The point `dx` in front of the feet and `dy` below."""
        return frame(self.feet, self.height)(dx, dy)

    def beside(self, joint: Point, dx: float, dy: float) -> Point:
        """The point `dx` in front of `joint` and `dy` below, whichever way the figure is turned."""
        return frame(joint, self.height)(dx, dy)

    def go(self, joint: Point, angle: float, length: float) -> Point:
        """The end of a bone that starts at `joint`."""
        return polar(joint, angle + self.turn, length * self.height)
