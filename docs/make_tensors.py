"""docs/tensors.md, made by running the modules without numbers: `make tensors` writes it anew."""

from pathlib import Path

import torch

from minedit.config import SD14
from minedit.record.names import OF_ATTENTION, catalogue, modules, split
from minedit.stack.text import TextEncoder
from minedit.stack.unet import UNet
from minedit.stack.vae import VAE

HEAD = """# Every tensor by name

```python
import minedit

sd = minedit.load()
names = "output_blocks.*.attn2.columns"
with minedit.recorded(sd, names, steps=[0, 3], rows="target.cond", words=["dog"], budget=10_000_000) as tape:
    minedit.edit(sd, "a cat in the park", "a dog in the park", steps=4)
for name in tape:
    print(name, tape[name])  # its axes and their sizes
maps = tape["output_blocks.3.1.transformer_blocks.0.attn2.columns"].at(step=3, word="dog").mean("head").maps()
print(maps.axes, maps.tensor.shape)
```

A name is the original checkpoint's name of a module, after `model.diffusion_model.`, `first_stage_model.` or
`cond_stage_model.transformer.` (which may stand before it), and a suffix. Names are given one by one, as globs, or as a
function of a name. Shapes below are those of Stable Diffusion v1.4 at 512 x 512, of one row; other models have the same
names, as many as they have layers, and sizes of their own. This page is made from the code by `make tensors`.

| suffix | what | axes |
| --- | --- | --- |
| `.in`, `.out` | a module's input and output | channel height width, or pixel channel |
| `.hidden` | an attention layer's `.in`: AdapEdit's E_[V] | pixel channel |
| `.q`, `.k`, `.v` | its queries, keys, values, as projected | head pixel width; head token width |
| `.columns` | softmax of its own queries and keys, before any rule | head pixel token; key in self-attention |
| `.columns.edited` | the probabilities that the output is made of: routed, masked, edited | the same |
| `.heads` | what each head hands on, before `to_out` | head pixel width |

Of the UNet and the latents there is an axis `step` in front, then `row`. A row of the latents is a picture: `source`
and `target` of an edit (`target1`, `target2` ... of several), `0`, `1` ... of `generate`. The UNet has each twice, as
`source.uncond` and `source.cond`. `rows="target"` chooses both halves, `rows="cond"` that half of all. The text encoder
has `negative` and each picture's prompt; the encoder of the autoencoder has `photo`. Where a method leaves a row out at
a step, its values are NaN; where it calls the UNet twice in a step, they are the last call's. Statistics passes and
inversions are not seen. The axis `pixel` keeps its height and width: `.maps()` makes two axes of it. The axis `token`
knows its words: `.at(row="target.cond", word="dog")` is the sum over a word's tokens.

`recorded(..., to="tape.safetensors")` fills a file in place of memory, `budget=` bytes at most, header and all; what
does not fit is refused before the run. `minedit.Tape.read(file)` reads it.

## Changing them

```python
def silent(value, at):  # value: one row's, of the shape below; at: name, site, row, step, timestep
    return value * 0


with minedit.patched(sd, {"middle_block.1.transformer_blocks.0.attn2.heads": silent}, steps=range(3), rows="target"):
    res = minedit.edit(sd, "a cat in the park", "a dog in the park", steps=4)
```

Both hold for this model in this thread alone, while the `with` lasts. A value that is given back as it came changes no
bit, whatever computes attention. `minedit ablate-heads`, `ablate-layers`, `ablate-words`, `ablate-steps` and `swap` are
made of such patches. Names with a star are no tensors of a model that `--fast` made on a GPU, where layers are fused.
"""


def size(entry) -> str:
    return " x ".join(map(str, entry.shape)) + "*" * entry.inner


def table(names, known) -> str:
    lines = ["| module | `.in` | `.out` |", "| --- | --- | --- |"]
    for name in names:
        cells = (size(known[f"{name}.{end}"]) if f"{name}.{end}" in known else "" for end in ("in", "out"))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_attention(known) -> str:
    ends = ("hidden", *OF_ATTENTION)
    lines = [f"| module | {' | '.join(f'`.{end}`' for end in ends)} |", "| --- " * (len(ends) + 1) + "|"]
    for name in dict.fromkeys(split(name)[0] for name in known if name.endswith(".heads")):
        lines.append(f"| `{name}` | {' | '.join(size(known[f'{name}.{end}']) for end in ends)} |")
    return "\n".join(lines)


def page() -> str:
    known = catalogue(SD14)
    with torch.device("meta"):
        parts = {"text": TextEncoder(SD14.text), "unet": UNet(SD14.unet), "vae": VAE(SD14.vae)}
    order = {kind: [name for name, _ in modules(part)] for kind, part in parts.items()}
    found = [HEAD, "## Of the run\n", "| name | axes | shape | |", "| --- | --- | --- | --- |"]
    said = {
        "text": "the text encoder's last states, of all rows of the UNet",
        "x_t": "the latents before a step",
        "eps.uncond": "the noise predicted without the prompt",
        "eps.cond": "with it",
        "eps": "guided: what the step goes by",
        "x0": "the clean latents that it implies; a step follows them where they are changed",
    }
    found += [
        f"| `{name}` | {' '.join(known[name].axes)} | {size(known[name])} | {what} |" for name, what in said.items()
    ]
    found += ["\n## UNet: attention layers\n", of_attention(known)]
    titles = (("unet", "UNet: all modules"), ("vae", "Autoencoder"), ("text", "Text encoder"))
    for kind, title in titles:
        found.append(f"\n## {title}\n")
        found.append(table([name for name in order[kind] if f"{name}.out" in known], known))
    return "\n".join(found).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("tensors.md").write_text(page(), encoding="utf-8")
