"""Ours against diffusers' and transformers' own classes, on shared random weights, in float32.

`make parity` runs all; `make parity ARGS='-m "not full"'` the small sizes, `-m full` those of SD-v1.4.
Relative error is max|ours - theirs| / max|theirs|.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from seeded import fill, normal, relative, weight
from tiny import GUIDANCE, TINY
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="only `make parity` installs diffusers")
import oracles  # noqa: E402
from diffusers import LatentConsistencyModelPipeline, LCMScheduler  # noqa: E402

from minedit.attention.sdpa import sdpa  # noqa: E402
from minedit.config import IP2P, PICTUREBOOK, SD14, Config  # noqa: E402
from minedit.files import formats  # noqa: E402
from minedit.files.layouts import recognise  # noqa: E402
from minedit.files.sizes import counted  # noqa: E402
from minedit.sampling import ddim  # noqa: E402
from minedit.sampling.loop import sample  # noqa: E402
from minedit.speed import packed  # noqa: E402
from minedit.speed.fast import pack, spare_products  # noqa: E402
from minedit.stack.text import TextEncoder  # noqa: E402
from minedit.stack.unet import UNet  # noqa: E402
from minedit.stack.vae import VAE  # noqa: E402

LIMIT = 1e-5
FAST_LIMIT = 2e-5  # with `--fast` on a CPU
BFLOAT16_LIMIT = 1.5  # times diffusers' own error in bfloat16
NARROW = replace(  # the blocks of SD-v1.4, a tenth as wide
    SD14,
    name="narrow sd-v1.4",
    unet=replace(SD14.unet, channels=(32, 64, 128, 128), context_dim=64),
    vae=replace(SD14.vae, channels=(32, 64, 128, 128)),
    text=replace(SD14.text, width=64, layers=2, heads=4, mlp=256),
    image_size=128,
)
CONFIGS = [TINY, PICTUREBOOK, NARROW, pytest.param(SD14, marks=pytest.mark.full)]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def built(kind: type[nn.Module], cfg: object) -> tuple[nn.Module, dict[str, Tensor]]:
    """Our module and its random weights, made once: at full size they are 3.4 GB."""
    with torch.device("meta"):
        module = kind(cfg)
    state = {name: weight(name, *x.shape) for name, x in module.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval(), state


def check(name: str, ours: Tensor, theirs: Tensor, limit: float = LIMIT) -> None:
    error = relative(ours, theirs)
    size = theirs.double().std().item()
    print(f"\n{name}: relative error {error:.1e}, limit {limit:.0e}, standard deviation {size:.2f}")
    assert 0.05 < size < 50, "degenerate: the weights say nothing"
    assert error <= limit


@torch.no_grad()
def unets(config: Config, rows: int, sides: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What ours predicts, ours made fast, and theirs."""
    module, state = built(UNet, config.unet)
    x = normal("x", rows, config.unet.in_channels, *(sides or (config.latent_size,) * 2))
    t = torch.tensor([981, 21, 500][:rows])
    context = normal("context", rows, config.text.context_length, config.unet.context_dim)
    ours = module(x, t, context)
    spare_products(module)
    fast = module(x, t, context)
    del module
    return ours, fast, oracles.unet(config.unet, state)(x, t, context).sample


@each_config
def test_unet(config: Config):
    ours, fast, theirs = unets(config, 1 if config is SD14 else 3)
    check(f"UNet {config.name}", ours, theirs)
    check(f"UNet {config.name}, fast", fast, theirs, FAST_LIMIT)


@pytest.mark.parametrize("config", [TINY, PICTUREBOOK, NARROW], ids=lambda config: config.name)
@pytest.mark.parametrize("sides", [(9, 13), (24, 12), (1, 7), (31, 33)])
def test_unet_of_any_shape(config: Config, sides: tuple[int, int]):
    """Multiples of 8 pixels: a map of the way up is as large as that of the way down, an odd one too."""
    ours, fast, theirs = unets(config, 2, sides)
    check(f"UNet {config.name}, {sides}", ours, theirs)
    check(f"UNet {config.name}, {sides}, fast", fast, theirs, FAST_LIMIT)


@each_config
@torch.no_grad()
def test_unet_in_bfloat16(config: Config):
    """Both against diffusers' in float32 with the same rounded weights: ours rounds no more often than theirs."""
    module, state = built(UNet, config.unet)
    state = {name: x.bfloat16() for name, x in state.items()}
    x = normal("x", 1, config.unet.in_channels, config.latent_size, config.latent_size).bfloat16()
    context = normal("context", 1, config.text.context_length, config.unet.context_dim).bfloat16()
    t = torch.tensor([500])
    exact = oracles.unet(config.unet, {name: x.float() for name, x in state.items()})(x.float(), t, context.float())
    exact, theirs = exact.sample, oracles.unet(config.unet, state)(x, t, context).sample
    module.load_state_dict(state, strict=True, assign=True)
    errors = {"diffusers'": theirs, "ours": module(x, t, context)}
    if packed.runs(torch.bfloat16):
        pack(module)
        errors["ours, fast"] = module(x, t, context)
    assert all(out.dtype == torch.bfloat16 for out in errors.values())
    errors = {name: ((out.float() - exact).norm() / exact.norm()).item() for name, out in errors.items()}
    print(f"\nUNet {config.name}, bfloat16:", ", ".join(f"{name} {error:.2e}" for name, error in errors.items()))
    limit = BFLOAT16_LIMIT * errors.pop("diffusers'")
    assert 0 < min(errors.values()) and max(errors.values()) <= limit < 0.1


@pytest.mark.parametrize("config", [TINY, SD14], ids=lambda config: config.name)
def test_norms_guard_against_zero_alike(config: Config):
    """1e-5 or 1e-6 changes outputs by less than LIMIT; with real weights' quiet channels it shows."""
    with torch.device("meta"):
        pairs = (
            (unet := UNet(config.unet), oracles.unet(config.unet, unet.state_dict()), oracles.unet_names(config.unet)),
            (vae := VAE(config.vae), oracles.vae(config.vae, vae.state_dict()), oracles.vae_names(config.vae)),
        )
    for ours, theirs, table in pairs:
        eps = {name: module.eps for name, module in ours.named_modules() if hasattr(module, "eps")}
        assert oracles.rename(eps, table) == {name: m.eps for name, m in theirs.named_modules() if hasattr(m, "eps")}


@pytest.mark.parametrize("config", [TINY, NARROW], ids=lambda config: config.name)
def test_a_folder_that_diffusers_saved_reads_as_our_names(config: Config, tmp_path):
    states = {"unet": built(UNet, config.unet)[1], "vae": built(VAE, config.vae)[1]}
    oracles.unet(config.unet, states["unet"]).save_pretrained(tmp_path / "unet")
    oracles.vae(config.vae, states["vae"]).save_pretrained(tmp_path / "vae")
    text = fill(oracles.text(config.text))
    text.save_pretrained(tmp_path / "text_encoder")
    states["text"] = {"text_model." + name.removeprefix("text_model."): x for name, x in text.state_dict().items()}
    read = recognise(tmp_path, formats.read(tmp_path)[0]).parts
    for part, state in states.items():
        assert read[part].keys() == state.keys()
        assert all(torch.equal(read[part][name].read(x.dtype), x) for name, x in state.items())


FEWER = {
    "fewer blocks": {"blocks": 1},
    "no middle": {"blocks": 1, "middle": False},
    "fewer levels": {"blocks": 1, "middle": False, "channels": (32, 64, 128), "attention": (True,) * 3},
}


@pytest.mark.parametrize("name", FEWER)
def test_unet_of_fewer_layers(name: str, tmp_path):
    """The shapes of BK-SDM, a tenth as wide; the sizes that a saved folder of it is read with are its own."""
    config = replace(NARROW, unet=replace(NARROW.unet, **FEWER[name]))
    ours, _, theirs = unets(config, 2)
    check(f"UNet of {name}", ours, theirs)
    oracles.unet(config.unet, built(UNet, config.unet)[1]).save_pretrained(tmp_path / "unet")
    held = recognise(tmp_path, formats.read(tmp_path, ["unet"])[0]).parts["unet"]
    assert counted(NARROW, held).unet == config.unet


def test_unet_of_instruct_pix2pix():
    """At the tiny size, with its eight input channels."""
    unet = replace(TINY.unet, in_channels=IP2P.unet.in_channels)
    ours, _, theirs = unets(replace(TINY, unet=unet), 2)
    check("UNet of 8 input channels", ours, theirs)


@pytest.mark.parametrize("steps", [1, 4, 7])
@torch.no_grad()
def test_steps_of_a_latent_consistency_model(steps: int):
    """diffusers' scheduler, embedding of the guidance scale and UNet, on the same draws of noise."""
    config = replace(NARROW, unet=replace(NARROW.unet, guidance_dim=256))
    module, state = built(UNet, config.unet)
    model = SimpleNamespace(unet=module, config=config, attend=sdpa, dtype=torch.float32)
    context, x = normal("context", 2, 77, 64), ddim.noise(5, 16, 16)
    *_, ours = sample(model, x, context, steps=steps, guidance=8.0, seeds=[5])

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler, generator = LCMScheduler(**betas, clip_sample=False), torch.Generator().manual_seed(5)
    theirs = torch.randn(1, 4, 16, 16, generator=generator)
    scheduler.set_timesteps(steps)
    told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([8.0 - 1]), 256)
    unet = oracles.unet(config.unet, state)
    for t in scheduler.timesteps:
        eps = unet(theirs, t, context[1:], timestep_cond=told).sample
        theirs, guess = scheduler.step(eps, t, theirs, generator=generator, return_dict=False)
    check(f"{steps} steps of a latent consistency model", ours.latents, guess, 1e-4)


@each_config
@torch.no_grad()
def test_vae(config: Config):
    module, state = built(VAE, config.vae)
    theirs = oracles.vae(config.vae, state)
    side = min(config.image_size, 256)
    image = normal("image", 1, 3, side, side).clamp(-1, 1)
    z = normal("z", 1, config.vae.z_channels, side // 8, side // 8)
    dist = theirs.encode(image).latent_dist
    check(f"VAE encoder {config.name} {side}", module.encode(image), dist.parameters)
    check(f"VAE decoder {config.name} {side}", module.decode(z), theirs.decode(z).sample)
    spare_products(module)
    check(f"VAE encoder {config.name} {side}, fast", module.encode(image), dist.parameters, FAST_LIMIT)
    check(f"VAE decoder {config.name} {side}, fast", module.decode(z), theirs.decode(z).sample, FAST_LIMIT)


@each_config
@torch.no_grad()
def test_text(config: Config):
    ours, theirs = fill(TextEncoder(config.text)), oracles.text(config.text)
    state = {name.removeprefix("clip."): x for name, x in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.text.bos, (2, config.text.context_length), generator=generator)
    ids[:, 0], ids[0, 5:], ids[1, -1] = config.text.bos, config.text.eos, config.text.eos
    check(f"text encoder {config.name}", ours(ids), theirs(input_ids=ids).last_hidden_state)


@torch.no_grad()
def test_fifty_guided_ddim_steps():
    config = PICTUREBOOK
    module, state = built(UNet, config.unet)
    latents = normal("latents", 1, 4, config.latent_size, config.latent_size)
    context = normal("context", 2, config.text.context_length, config.unet.context_dim)
    model = SimpleNamespace(unet=module, attend=sdpa, config=config, device=latents.device, dtype=latents.dtype)
    *_, last = sample(model, latents, context, steps=50, guidance=GUIDANCE)
    theirs = oracles.sample(oracles.unet(config.unet, state), latents, context, 50, GUIDANCE)
    check("50 DDIM steps, guidance 7.5", last.latents, theirs, 1e-4)
