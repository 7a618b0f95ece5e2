"""What docs/methods.md shows of each method and inversion: pictures by `make gallery`, commands by `make methods`.

Of a drawn source: (source, target, seed), the seed chosen by eye among SEEDS. Of a photograph: (its name, instruction,
seed), or (its name, source, target).
"""

FOLDER = "docs/methods"  # of the strips, and of the photographs
SEEDS = 8  # from 0 on
STRIPS = {
    "adapedit": (
        ("a standing dog on the grass", "a sitting dog on the grass", 3),
        ("an apple on the table", "two apples on the table", 3),
        ("a standing cat in a room", "a lying cat in a room", 6),
    ),
    "adapedit+": (
        ("a boy in the park", "a sitting boy in the park", 1),
        ("a standing dog on the grass", "a sitting dog on the grass", 2),
        ("a standing cat in a room", "a lying cat in a room", 2),
    ),
    "p2p": (
        ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
        ("a brown dog on the grass", "a white dog on the grass", 1),
        ("a cat on the grass", "a dog on the grass", 4),
    ),
    "masactrl": (
        ("a boy in the park", "a sitting boy in the park", 5),
        ("a standing dog on the grass", "a sitting dog on the grass", 2),
        ("a standing cat in a room", "a lying cat in a room", 1),
    ),
    "freeprompt": (
        ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
        ("a brown dog on the grass", "a white dog on the grass", 6),
        ("a cat on the grass", "a dog on the grass", 3),
    ),
    "plug-and-play": (
        ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
        ("a brown dog on the grass", "a white dog on the grass", 2),
        ("a dog on the beach", "a dog in the snow", 1),
    ),
    "fixed-seed": (
        ("an apple on the table", "two apples on the table", 3),
        ("a standing dog on the grass", "a sitting dog on the grass", 3),
        ("a cat on the grass", "a dog on the grass", 4),
    ),
    "sdedit": (
        ("a cat on the grass", "a dog on the grass", 4),
        ("an apple on the table", "two apples on the table", 5),
        ("a boy in the park", "a sitting boy in the park", 7),
    ),
    "flow": (
        ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 2),
        ("a brown dog on the grass", "a white dog on the grass", 7),
        ("a boy in the park", "a sitting boy in the park", 5),
    ),
    "h-edit": (
        ("a girl in a red dress on the beach", "a girl in a blue dress on the beach", 4),
        ("a brown dog on the grass", "a white dog on the grass", 2),
        ("a cat on the grass", "a dog on the grass", 5),
    ),
}
INSTRUCTED = {  # by methods that read a photograph, with a model of their own
    "instruct-pix2pix": (
        ("boy", "make the boy sit", 2),
        ("cat", "turn the cat into a dog", 0),
        ("girl", "make the dress blue", 2),
    )
}
INVERTED = "cat", "a cat on the grass", "a dog on the grass"  # by each inversion, AdapEdit's edit with seed 0
GUIDANCE = {"edict": 3.0}  # of the run, as the authors have it


def picture(name: str) -> str:
    """The file of a method's or an inversion's strip."""
    return f"{name.replace('+', '-plus')}.webp"


def command(name: str) -> str:
    """The command that draws the first edit of its strip."""
    if name in STRIPS:
        source, target, seed = STRIPS[name][0]
        return f'minedit edit "{source}" "{target}" --method {name} --seed {seed}'
    if name in INSTRUCTED:
        photo, text, seed = INSTRUCTED[name][0]
        model = f"--model {name} --method {name} --seed {seed}"
        return f'minedit edit --image {FOLDER}/{photo}.png "" "{text}" {model}'
    photo, source, target = INVERTED
    more = f" --guidance {GUIDANCE[name]:g}" if name in GUIDANCE else ""
    return f'minedit edit --image {FOLDER}/{photo}.png "{source}" "{target}" --inversion {name}{more}'
