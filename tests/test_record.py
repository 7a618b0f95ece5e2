"""Recorded values, patches. Oracles: hooks of torch's own, float64 softmax(q k^T), DDIM's formula, sizes in bytes."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_model import TOKENS, small_model
from test_graphs import repeated

import minedit
from minedit.attention.choose import backend
from minedit.attention.sdpa import sdpa
from minedit.config import MineditError
from minedit.record.names import catalogue
from minedit.record.recorder import Tape
from minedit.sampling import ddim
from minedit.speed.fast import fast, spare_products
from minedit.speed.graphs import Recorded

PAIR = "a boy in the park", "a sitting boy in the park"
SITE = "output_blocks.1.1.transformer_blocks.0.attn2"
STEPS = 3


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture(scope="module")
def plain(sd):
    return draw(sd)


def draw(sd, method="adapedit", **more):
    return minedit.edit(sd, *PAIR, method, **{"steps": STEPS, "guidance": 3.0, **more})


def same(ours, plain):
    pairs = ((ours.source_latent, plain.source_latent), (ours.edited_latent, plain.edited_latent))
    return all(torch.equal(a, b) for a, b in pairs)


def graphed(sd):
    unet = copy.deepcopy(sd.unet)
    unet.forward = Recorded(unet.forward, repeated)
    return replace(sd, unet=unet)


def quick():
    sd = small_model()
    spare_products(sd.unet)
    spare_products(sd.vae)
    return sd


def interpreted():
    """Triton's kernel in its interpreter, which is slow: in the layers of SITE's size alone, sdpa in the others."""
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU here")
    sd, kernel = small_model(), backend("triton")

    def attend(q, k, v, rule=None, columns=False):
        return (kernel if q.shape[2] == k.shape[2] == TOKENS else sdpa)(q, k, v, rule, columns)

    return replace(sd, attend=attend)


MODELS = {
    **{name: lambda name=name: small_model(name) for name in ("eager", "sdpa")},
    "triton": lambda: interpreted(),
    "graphs": lambda: graphed(small_model()),
    "fast": lambda: fast(small_model()),
    "winograd": quick,
}


def test_each_name_is_recorded_once_and_changes_no_bit(sd, plain):
    """All of a run, and of a photograph's encoding."""
    names = catalogue(sd.config)
    with minedit.recorded(sd, "*") as tape:
        ours = draw(sd)
    assert same(ours, plain)
    assert set(tape) == {name for name, entry in names.items() if entry.part != "encoder"}
    for name in tape:
        values, entry = tape[name], names[name]
        assert tuple(values.shape[-len(entry.shape) :]) == entry.shape and len(values.axes) == values.tensor.ndim
        assert values.tensor.isfinite().all(), name
    with minedit.recorded(sd, ["encoder*", "quant_conv.out"]) as tape:
        minedit.edit(sd, *PAIR, "p2p", image=Image.new("RGB", (80, 64), "teal"), steps=2, width=80, height=64)
    assert set(tape) == {n for n, e in names.items() if e.part == "encoder" and not n.startswith("quant_conv.in")}
    assert tape["quant_conv.out"].shape[2:] == catalogue(sd.config, (8, 10))["quant_conv.out"].shape[1:]
    assert all(tape[name].tensor.isfinite().all() for name in tape)


@pytest.mark.parametrize("name", MODELS)
def test_recording_changes_no_bit(name):
    """And a value given back changes none: with every attention function, recorded graphs, a fast model."""
    sd = MODELS[name]()
    few = ["*.columns", "*.columns.edited", "*.heads", "*.q", "x_t", "eps*", "x0", "*.attn?.in", "middle_block.0.out"]
    run = ("p2p", 1) if name == "triton" else ("adapedit", 2)
    before = draw(sd, run[0], steps=run[1])
    with minedit.recorded(sd, few) as tape:
        assert same(draw(sd, run[0], steps=run[1]), before)

    def again(value, at):
        found = tape[at.name]
        return found.at(row=at.row, step=at.step).tensor

    with minedit.patched(sd, dict.fromkeys(few, again)):
        assert same(draw(sd, run[0], steps=run[1]), before)


def test_values_are_those_of_torchs_own_hooks(sd):
    """Of the modules' inputs and outputs in the last call of the UNet, which no statistics pass makes."""
    seen = {}
    names = ["input_blocks.1.0", SITE, "middle_block.1", "out.2"]
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
        for name, module in sd.unet.named_modules()
        if name in names
    ]
    try:
        with minedit.recorded(
            sd, [f"{name}.{end}" for name in names for end in ("in", "out")], steps=STEPS - 1
        ) as tape:
            draw(sd)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        for end, x in zip(("in", "out"), seen[name], strict=True):
            assert torch.equal(tape[f"{name}.{end}"].at(step=STEPS - 1).tensor, x), (name, end)
    assert tape["out.2.out"].labels["row"] == ("source.uncond", "target.uncond", "source.cond", "target.cond")


@pytest.mark.parametrize("name", ["eager", "sdpa", "triton"])
def test_columns_are_softmax_of_q_and_k(name):
    """Before the edit; and after it, by Prompt-to-Prompt's pinned columns, which are the source's."""
    sd = MODELS[name]()
    with minedit.recorded(sd, f"{SITE}.*", steps=[0]) as tape:
        minedit.edit(sd, *PAIR, "p2p", steps=1, guidance=2.0)
    q, k, v, columns, edited, heads = (
        tape[f"{SITE}.{name}"].at(step=0).tensor.double()
        for name in ("q", "k", "v", "columns", "columns.edited", "heads")
    )
    oracle = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    assert torch.allclose(columns, oracle, atol=1e-6) and columns.shape[-1] == TOKENS
    assert torch.equal(edited[:3], columns[:3])
    # a boy in ... → a sitting boy in ...: begin, a; sitting is new; boy, in, the, park, end
    assert torch.allclose(edited[3][..., [0, 1, 3, 4, 5, 6]], oracle[2][..., [0, 1, 2, 3, 4, 5]], atol=1e-6)
    assert torch.allclose(edited[3][..., 2], oracle[3][..., 2], atol=1e-6)
    assert torch.allclose(heads, edited @ v, atol=1e-5)


def test_selection_by_step_row_head_and_word(sd):
    whole, some = (f"{SITE}.columns.edited" for _ in range(2))
    with minedit.recorded(sd, whole) as all_of_it:
        draw(sd)
    with minedit.recorded(sd, some, steps=[0, 2], rows="cond", heads=[1], words=["boy", "sitting boy"]) as tape:
        draw(sd)
    values = tape[some]
    assert values.axes == ("step", "row", "head", "pixel", "word")
    assert values.labels == {
        **{"step": (0, 2), "row": ("source.cond", "target.cond"), "head": (1,), "word": ("boy", "sitting boy")}
    }
    oracle = all_of_it[whole].at(step=2, row="target.cond", head=1).tensor
    found = values.at(step=2, row="target.cond", head=1)
    assert torch.allclose(found.at(word="boy").tensor, oracle[:, 3], atol=1e-7)
    texts = "<begin>", *PAIR[1].split(), "<end>", *["<padding>"] * (TOKENS - 8)
    assert all_of_it[whole].words["target.cond"] == texts
    alone = all_of_it[whole].at(step=2, row="target.cond", head=1, word="boy")
    assert torch.equal(alone.tensor, oracle[:, 3]) and alone.axes == ("pixel",)
    with pytest.raises(MineditError, match="tokens are other words in other rows"):
        all_of_it[whole].at(word="boy")
    assert torch.allclose(found.at(word="sitting boy").tensor, oracle[:, [2, 3]].sum(-1), atol=1e-7)
    assert values.at(row="source.cond", word="sitting boy").tensor.isnan().all()  # it is not in that prompt
    assert values.maps().shape[3:5] == values.map and "height" in values.maps().axes
    with pytest.raises(MineditError, match="the word 'horse' is in none of the prompts; their words are a, boy"):
        with minedit.recorded(sd, some, words=["horse"]):
            draw(sd)
    with pytest.raises(MineditError, match="there is no row 'edited'; expected one of source.cond, target.cond"):
        values.at(row="edited")
    with pytest.raises(MineditError, match="no tensor is named 'middle_blok.*'; the nearest: middle_block"):
        with minedit.recorded(sd, "middle_blok.*"):
            pass


def test_latents_are_those_of_the_sampler(sd):
    """x0 and the next x_t by DDIM's formula from x_t and eps, and eps from its halves by guidance."""
    with minedit.recorded(sd, ["x_t", "x0", "eps*", "text"]) as tape:
        out = minedit.generate(sd, ["a boy", "a dog in the park"], seed=[1, 2], steps=STEPS, guidance=3.0)
    x, x0, eps, uncond, cond = (tape[name].tensor.double() for name in ("x_t", "x0", "eps", "eps.uncond", "eps.cond"))
    assert torch.allclose(eps, uncond + 3 * (cond - uncond), atol=1e-5)
    for index, (t, t_prev) in enumerate(ddim.schedule(STEPS)):
        a, b = ddim.alpha(t), ddim.alpha(t_prev)
        clean = (x[index] - (1 - a) ** 0.5 * eps[index]) / a**0.5
        after = b**0.5 * clean + (1 - b) ** 0.5 * eps[index]
        assert torch.allclose(x0[index], clean, atol=1e-4)
        following = x[index + 1] if index + 1 < STEPS else out.latents.double() * sd.config.latent_scale
        assert torch.allclose(following, after, atol=1e-4)
    assert tape["text"].shape == (4, TOKENS, 16) and tape["x_t"].labels["row"] == ("0", "1")


def test_a_budget_is_kept_to_the_byte(sd, tmp_path):
    names, chosen = [f"{SITE}.columns", f"{SITE}.q", "x_t"], {"rows": "target", "dtype": "float16"}
    with minedit.recorded(sd, names, **chosen) as tape:
        draw(sd)
    bytes_of = sum(tape[name].tensor.numel() * 2 for name in tape)
    with minedit.recorded(sd, names, budget=bytes_of, **chosen):
        draw(sd)
    calls = []
    hook = sd.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(MineditError, match=f"takes {bytes_of:,} bytes, the budget is {bytes_of - 1:,}"):
            with minedit.recorded(sd, names, budget=bytes_of - 1, **chosen):
                draw(sd)  # not even the statistics pass
    finally:
        hook.remove()
    assert not calls
    file = tmp_path / "tape.safetensors"
    with minedit.recorded(sd, names, to=file, **chosen):
        draw(sd)
    size = file.stat().st_size
    for budget, fits in ((size, True), (size - 1, False)):
        other = tmp_path / f"{budget}.safetensors"
        try:
            with minedit.recorded(sd, names, to=other, budget=budget, **chosen):
                draw(sd)
        except MineditError:
            assert not fits
        assert other.exists() is fits
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, f"{size}.safetensors"])
    back, stored = Tape.read(file), load_file(file)
    for name in tape:
        assert torch.equal(back[name].tensor, tape[name].tensor) and torch.equal(stored[name], tape[name].tensor)
        for part in ("axes", "labels", "map", "words"):
            assert getattr(back[name], part) == getattr(tape[name], part)


def test_a_patch_is_what_the_run_goes_on_with(sd, plain):
    """A head that hands on nothing is a layer whose output lacks that head's columns of to_out."""
    layer = sd.unet.get_submodule(SITE)

    def silent(value, at):
        assert at.site == SITE and at.row == "target.cond" and at.step == 1 and at.timestep == ddim.timesteps(STEPS)[1]
        return torch.cat([value[:1], torch.zeros_like(value[1:])])

    names = [f"{SITE}.heads", f"{SITE}.out"]
    with minedit.recorded(sd, names, steps=1) as before:
        draw(sd)
    with minedit.patched(sd, {names[0]: silent}, steps=1, rows="target.cond"):
        with minedit.recorded(sd, names, steps=1) as after:
            ours = draw(sd)
    assert not same(ours, plain) and torch.equal(ours.source_latent, plain.source_latent)
    was, now = (tape[names[0]].at(step=1).tensor for tape in (before, after))
    assert torch.equal(now[:3], was[:3]) and torch.equal(now[3, 0], was[3, 0]) and not now[3, 1].any()
    half = layer.site.channels // 2
    oracle = was[3, 0].double() @ layer.to_out[0].weight[:, :half].double().T + layer.to_out[0].bias.double()
    assert torch.allclose(after[names[1]].at(step=1, row="target.cond").tensor.double(), oracle, atol=1e-5)


def test_probabilities_can_be_patched_under_any_kernel():
    """The output is then made of what was given: of even attention, the mean of the values."""
    for attention in ("eager", "sdpa"):
        sd = MODELS[attention]()
        for name in (f"{SITE}.columns", f"{SITE}.columns.edited"):
            with minedit.patched(sd, {name: lambda value, at: torch.full_like(value, 1 / TOKENS)}, steps=2):
                with minedit.recorded(sd, [f"{SITE}.heads", f"{SITE}.v", name], steps=2) as tape:
                    draw(sd, "fixed-seed")
            mean = tape[f"{SITE}.v"].tensor.mean(-2, keepdim=True).expand_as(tape[f"{SITE}.heads"].tensor)
            assert torch.allclose(tape[f"{SITE}.heads"].tensor, mean, atol=1e-6)
            assert torch.allclose(tape[name].tensor, torch.tensor(1 / TOKENS))


def test_clean_latents_can_be_patched(sd):
    """The step then leads along the noise that these clean latents imply; the other row stays as it is, bit for bit."""
    with minedit.recorded(sd, "x_t", steps=STEPS - 1) as tape:
        with minedit.patched(sd, {"x0": lambda value, at: torch.ones_like(value)}, steps=STEPS - 1, rows="target"):
            ours = draw(sd, "p2p")
    assert torch.equal(ours.source_latent, draw(sd, "p2p").source_latent)
    a, b = (ddim.alpha(t) for t in ddim.schedule(STEPS)[-1])
    x = tape["x_t"].at(step=STEPS - 1, row="target").tensor.double()
    oracle = b**0.5 + (1 - b) ** 0.5 * (x - a**0.5) / (1 - a) ** 0.5
    assert torch.allclose(ours.edited_latent[0].double() * sd.config.latent_scale, oracle, atol=1e-4)


def test_what_matches_nothing_is_said(sd):
    with pytest.raises(MineditError, match=r"no tensor is named '\*.attn3.q'; the nearest: .*attn\d.q,"):
        with minedit.patched(sd, {"*.attn3.q": lambda value, at: value}):
            pass
    with pytest.raises(MineditError, match="nothing that 'encoder.out' names came up"):
        with minedit.patched(sd, {"encoder.out": lambda value, at: value}):
            draw(sd)
    with pytest.raises(MineditError, match=r"gave \[3\], expected a tensor \[4, 8, 8\]"):
        with minedit.patched(sd, {"x_t": lambda value, at: torch.zeros(3)}):
            draw(sd)


WRONG = (
    ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ({"dtype": "int8"}, "dtype 'int8' is unknown; expected float32, float16"),
    ({"budget": "1 GB"}, "budget is '1 GB', expected a number of bytes"),
    ({"heads": [2]}, r"heads is \[2\], expected some of 0 to 1"),
    ({"steps": [7]}, r"steps is \(7,\), none of this run's 0 to 2"),
    ({"rows": "edited"}, "rows is 'edited', none of source.uncond, target.uncond, source.cond, target.cond"),
    ({"steps": 0.5}, "steps is 0.5, expected the number of a step, several, or a function"),
    ({"names": []}, "no name was given"),
    ({"names": lambda name: False}, "the function of names chose none of"),
    ({"names": [3]}, r"names is \[3\], expected a name, a glob such as"),
)


@pytest.mark.parametrize("wrong, fault", WRONG, ids=[next(iter(wrong)) for wrong, _ in WRONG])
def test_mistakes_are_said_in_a_line(sd, wrong, fault):
    with pytest.raises(MineditError, match=fault), minedit.recorded(sd, **wrong):
        draw(sd)


def test_two_models_and_two_threads_do_not_meet(sd, plain):
    """Patches of one model, in one thread: the other model, and the same one in another thread, draw as ever."""
    other, found, barrier = small_model("eager"), {}, threading.Barrier(2, timeout=60)
    expected = draw(other)

    def patched(name, factor):
        with minedit.patched(sd, {f"{SITE}.out": lambda value, at: value * factor}):
            barrier.wait()
            found[name] = draw(sd)
            barrier.wait()

    threads = [threading.Thread(target=patched, args=each) for each in (("one", 1), ("none", 0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(found["one"], plain) and not same(found["none"], plain)
    with minedit.patched(sd, {f"{SITE}.out": lambda value, at: value * 0}):
        assert same(draw(other), expected)
        assert same(draw(sd), found["none"])
    assert same(draw(sd), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sd.unet.modules())


METHODS = [name for name in minedit.METHODS if name != "instruct-pix2pix"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_recorded(sd, method):
    """Rows that a method leaves out are NaN, and those that it draws are not."""
    before = draw(sd, method, steps=4)
    with minedit.recorded(sd, [f"{SITE}.columns", "x_t"]) as tape:
        assert same(draw(sd, method, steps=4), before)
    columns = tape[f"{SITE}.columns"]
    drawn = columns.at(row="target.cond").tensor
    assert torch.allclose(drawn.sum(-1), torch.ones(()), atol=1e-5)
    assert tape["x_t"].tensor.isfinite().all()


def test_a_users_own_attention_function_is_recorded(sd):
    own = replace(sd, attend=backend("eager"))
    with minedit.recorded(own, f"{SITE}.columns") as tape:
        draw(own)
    assert tape[f"{SITE}.columns"].tensor.isfinite().all()


def test_inversions_and_several_targets_are_recorded(sd):
    """Of a photograph's edit by each inversion, and of two targets in one batch; no bit changes."""
    photo = Image.new("RGB", (64, 64), "teal")
    for inversion in minedit.INVERSIONS:
        run = {"image": photo, "inversion": inversion, **({"inner_steps": 1} if inversion == "null-text" else {})}
        before = draw(sd, "p2p", **run)
        with minedit.recorded(sd, [f"{SITE}.columns", "x_t", "quant_conv.out"]) as tape:
            assert same(draw(sd, "p2p", **run), before), inversion
        assert tape[f"{SITE}.columns"].at(row="target.cond").tensor.isfinite().all(), inversion
        assert tape["quant_conv.out"].labels["row"] == ("photo",)
    with minedit.recorded(sd, f"{SITE}.columns", words=["dog", "boy"], rows="cond") as tape:
        minedit.edits(sd, PAIR[0], [PAIR[1], "a dog in the park"], "p2p", steps=2)
    found = tape[f"{SITE}.columns"]
    assert found.labels["row"] == ("source.cond", "target1.cond", "target2.cond")
    assert found.at(row="target2.cond", word="dog").tensor.isfinite().all()
    assert found.at(row="target1.cond", word="dog").tensor.isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's fused layers and recorded steps")
def test_a_model_made_fast_on_a_gpu():
    """Steps that are recorded are launched one kernel after the other: the pictures are those of the graphs."""
    sd = fast(small_model("auto", device="cuda"))
    before = draw(sd)
    few = ["*.attn?.columns*", "*.heads", "x_t", "eps.*", "middle_block.0.out", "decoder.out"]
    with minedit.recorded(sd, few) as tape:
        assert same(draw(sd), before)
    assert all(tape[name].tensor.isfinite().all() for name in tape)
    with pytest.raises(MineditError, match="whose layers are fused"), minedit.recorded(sd, "*.in_layers.0.out"):
        pass
    assert same(draw(sd), before)
