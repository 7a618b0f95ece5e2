"""Layers of the target that read the source: the rules of MasaCtrl, FreePromptEditing and Plug-and-Play.

Rows: 0, 1 unconditional source, target; 2, 3 conditional source, target. `settings` are the method's.
"""

from collections.abc import Callable, Sequence

from minedit.attention.rules import Mask, Rule, Site, Split
from minedit.config import MineditError
from minedit.methods import Job, Told, Way
from minedit.methods.named import word_indices
from minedit.methods.plan import SELF_RULE, SOURCE, TARGET, map_shape, map_side, unedited
from minedit.settings import Settings
from minedit.stack.tokens import Prompt, Tokenizer, align

EACH = (0, 0, SOURCE, SOURCE)  # each half of guidance reads its own source
FIRST = (0, 0, SOURCE, 0)  # both read the unconditional one


def mutual(job: Job, settings: Settings, layers: int) -> Way:
    """MasaCtrl; layers: those that `start_layer` counts."""
    own = self_attention(job)
    chosen = own[share(settings.start_layer, layers, len(own)) :]
    split = None if settings.foreground is None else foreground(job, settings)
    rules = {}
    for site in chosen:
        masks = (Mask(row, split(site)) for row in (1, TARGET) if split)
        rules[site.name] = Rule(k_rows=EACH, v_rows=EACH, masks=tuple(masks))
    watch = dict.fromkeys(map_sites(job), True) if split and chosen else {}
    first, steps = settings.start_step, job.run.steps
    return Way(
        rules=lambda step: rules if step >= first else {},
        watch=lambda step: watch if step >= first else {},
        told=_told(job, len(chosen), len(own), max(0, steps - first), "keys and values"),
    )


def maps(job: Job, settings: Settings, side: int) -> Way:
    """FreePromptEditing; side: of the latents that `map_side` is for."""
    own, size = self_attention(job), job.sd.config.latent_size
    chosen = [site for site in own if map_side(site, job.sd.config) * side <= settings.map_side * size]
    rules, end = {site.name: SELF_RULE for site in chosen}, int(settings.map_steps * job.run.steps)
    return Way(
        rules=lambda step: rules if step < end else {}, told=_told(job, len(chosen), len(own), end, "queries and keys")
    )


def features(job: Job, settings: Settings, blocks: int) -> Way:
    """Plug-and-Play; blocks: those that `start_block` counts."""
    own, count = self_attention(job), len(job.sd.unet.output_blocks)
    first = share(settings.start_block, blocks, count)
    names = tuple(f"output_blocks.{i}." for i in range(first, count))
    chosen = [site for site in own if site.name.startswith(names)]
    rows = EACH if job.sd.config.unet.guidance_dim else FIRST  # a consistency model has no unconditional row
    read = {site.name: Rule(q_rows=rows, k_rows=rows) for site in chosen}
    added = {f"output_blocks.{first}.0": Rule(v_rows=rows)}
    ends = [int(fraction * job.run.steps) for fraction in (settings.attention_steps, settings.feature_steps)]
    more = f"the features of output block {first} in {ends[1]} steps"
    return Way(
        rules=lambda step: {**(read if step < ends[0] else {}), **(added if step < ends[1] else {})},
        told=_told(job, len(chosen), len(own), ends[0], "queries and keys", more),
    )


def foreground_words(tokenizer: Tokenizer, source: Prompt, target: Prompt, named: str) -> tuple[Sequence[int], ...]:
    """Words of the target, and those of the source that they stand for. Raises MineditError where either is none."""
    pairs = align(source, target).pairs
    words = word_indices(tokenizer, target, named)
    old = sorted({word for pair in pairs if pair.word in words for word in pair.source})
    if not old:
        fault = f"foreground {named!r} stands for no word of the source prompt"
        known = [target.words[pair.word].text for pair in pairs if pair.source]
        raise MineditError(f"{fault}; name one that does: {', '.join(known)}" if known else f"{fault}; omit it")
    return words, old


def foreground(job: Job, settings: Settings) -> Callable[[Site], Split]:
    """How MasaCtrl's layers tell foreground and background."""
    words, old = foreground_words(job.sd.tokenizer, job.source, job.target, settings.foreground)
    tokens = tuple(
        tuple(token for word in named for token in prompt.words[word].tokens)
        for prompt, named in ((job.target, words), (job.source, old))
    )
    sites = map_sites(job)
    seen = shape(job, next(site for site in job.sd.unet.sites if site.name in sites))
    level = settings.foreground_level
    return lambda site: Split(sites, (TARGET, SOURCE), tokens, seen, shape(job, site), level)


def map_sites(job: Job) -> tuple[str, ...]:
    """The cross-attention layers that say where words are."""
    config = job.sd.config
    sites = [site for site in job.sd.unet.sites if site.kind == "cross"]
    found = tuple(site.name for site in sites if map_side(site, config) == config.self_size)
    if not found:
        sides = sorted({map_side(site, config) for site in sites})
        raise MineditError(f"{config.name} has cross-attention maps of sides {sides}, expected {config.self_size}")
    return found


def shape(job: Job, site: Site) -> tuple[int, int]:
    """(height, width) of a layer's map in this run."""
    config = job.sd.config
    height, width = (side or config.image_size for side in (job.run.height, job.run.width))
    return map_shape(site, (height // config.vae.factor, width // config.vae.factor))


def self_attention(job: Job) -> Sequence[Site]:
    """In the order in which the layers run."""
    return [site for site in job.sd.unet.sites if site.kind == "self"]


def share(number: int, of: int, count: int) -> int:
    """As large a share of `count` as `number` is of `of`."""
    return round(number * count / of)


def _told(job: Job, layers: int, of: int, steps: int, what: str, *more: str) -> Callable[[], Told]:
    notes = f"the source's {what} in {layers} of {of} layers of self-attention, {steps} of {job.run.steps} steps", *more
    found = Told(unedited(job).told().words, notes)
    return lambda: found
