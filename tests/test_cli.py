"""The command line on a small random model: the files it leaves, what it says, and one line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file
from seeded import fill, normal
from small_model import small_model

import minedit.verbs.edit
from minedit import cli, image
from minedit.cli import output
from minedit.files import checkpoint
from minedit.stack import taesd
from minedit.stack.taesd import TAESD

ROOT = Path(__file__).parent.parent
BOY, SITTING = "a boy in the park", "a sitting boy in the park"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    checkpoint.save(small_model(), path)
    return path


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """Run a command in an empty folder with the small model and few steps; returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def command(*argv: object, few: bool = True) -> int:
        few_steps = ["--steps", 3, "--model", weights] if few else []
        return cli.main([str(word) for word in [*argv, *few_steps]])

    return command


def same(first: Path, second: Path) -> bool:
    return not ImageChops.difference(Image.open(first), Image.open(second)).getbbox()


def files(folder: Path = Path(".")) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- files -----------------------------------------------------------------------------------------------------------


def test_edit_writes_pictures_and_settings(run, capsys):
    assert run("edit", BOY, SITTING, "--lambda-s", 0.9, "--no-mask") == 0
    assert files(Path("out")) == {f"0001-{name}" for name in ("source.png", "edited.png", "grid.png", "edit.json")}
    record = json.loads(Path("out/0001-edit.json").read_text())
    expected = {"source": BOY, "target": SITTING, "method": "adapedit", "seed": 0, "steps": 3, "guidance": 7.5}
    expected |= {"lambda_s": 0.9, "mask": False, "fwt": True, "dtype": "float32", "device": "cpu"}
    assert expected.items() <= record.items()
    assert [word["text"] for word in record["words"]] == SITTING.split()
    assert record["words"][1] == {"text": "sitting", "kind": "inserted", "tau": 0.0}
    said = capsys.readouterr().out
    assert said.endswith("out/0001-edit.json, out/0001-grid.png\n")  # the picture that one opens comes last
    for part in (
        "small",
        "cpu",
        "float32",
        "auto (sdpa)",
        "sitting  inserted  0.00",
        "out/0001-edited.png",
        " rows of the UNet; wrote",
    ):
        assert part in said, part


def test_pictures_are_those_of_the_public_face(run, weights):
    assert run("edit", BOY, SITTING, "--seed", 3) == 0
    res = minedit.edit(minedit.load(weights), BOY, SITTING, seed=3, steps=3)
    for name, picture in (("source", res.source), ("edited", res.edited)):
        assert not ImageChops.difference(Image.open(f"out/0001-{name}.png"), picture).getbbox()


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", 5, "--guidance", 4, "--eta", 0.5, "--lambda-tau", 0.5, "--no-dps"),
        ("--method", "p2p", "--cross-steps", 0.5, "--reweight", "sitting=2", "0=1.5"),
        ("--method", "fixed-seed", "--attention", "eager"),
    ],
)
def test_a_picture_holds_what_makes_it_again(run, options):
    assert run("edit", BOY, SITTING, *options) == 0
    for name in ("source", "edited", "grid"):
        assert run("edit", "--from", f"out/0001-{name}.png", "--out", name, few=False) == 0
        assert same(Path("out/0001-source.png"), Path(name, "0001-source.png"))
        assert same(Path("out/0001-edited.png"), Path(name, "0001-edited.png"))
        assert image.settings(f"out/0001-{name}.png") == image.settings(f"{name}/0001-{name}.png")


def test_a_number_that_is_a_word_stays_a_word(run):
    """The bug: `--reweight 3=4` reweighted the word at index 3 of "3 boys in the park", and the picture said so."""
    assert run("edit", BOY, "3 boys in the park", "--method", "p2p", "--reweight", "3=4", "1=2") == 0
    assert image.settings("out/0001-edited.png")["reweight"] == [["3", 4.0], ["1", 2.0]]
    assert run("edit", "--from", "out/0001-edited.png", "--out", "again", few=False) == 0
    assert same(Path("out/0001-edited.png"), Path("again/0001-edited.png"))


def test_from_a_picture_with_other_options(run):
    assert run("edit", BOY, SITTING, "--seed", 2, "--lambda-s", 0.5) == 0
    assert run("edit", "--from", "out/0001-edited.png", "--lambda-tau", 0.3, "--out", "new", few=False) == 0
    assert {"lambda_s": 0.5, "lambda_tau": 0.3, "seed": 2}.items() <= image.settings("new/0001-edited.png").items()
    assert run("edit", "--from", "out/0001-edited.png", "--method", "p2p", "--out", "p2p", few=False) == 0
    assert "lambda_s" not in image.settings("p2p/0001-edited.png")


def test_several_seeds_and_pairs(run, monkeypatch):
    loads = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args: loads.append(args) or load(*args))
    lines = [{"source": BOY, "target": SITTING, "kind": "pose"}, {"source": "a dog", "target": "a big dog"}]
    Path("pairs.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert run("edit", "--pairs", "pairs.jsonl", "--seed", 0, 1, 1) == 0
    names = [f"{number:04d}-seed{seed}-" for number, seed in enumerate((0, 1, 0, 1), 1)]
    kinds = ("source.png", "edited.png", "grid.png", "edit.json")
    assert files(Path("out")) == {name + kind for name in names for kind in kinds}
    assert json.loads(Path("out/0001-seed0-edit.json").read_text())["pair"] == lines[0]
    assert len(loads) == 1
    assert run("edit", "a dog", "a big dog", "--seed", 1, "--out", "alone") == 0
    assert same(Path("alone/0001-edited.png"), Path("out/0004-seed1-edited.png"))


def test_generate(run):
    assert run("generate", BOY, "a dog", "--seed", 0, 1) == 0
    names = {f"000{n}-seed{seed}-" for n, seed in zip(range(1, 5), (0, 1, 0, 1), strict=True)}
    assert files(Path("out")) == {name + kind for name in names for kind in ("image.png", "generate.json")}
    assert run("generate", "--from", "out/0004-seed1-image.png", "--out", "again", few=False) == 0
    assert files(Path("again")) == {"0001-image.png", "0001-generate.json"}
    assert same(Path("again/0001-image.png"), Path("out/0004-seed1-image.png"))
    assert run("generate", "--from", "again/0001-image.png", "a cat", "--out", "cat", few=False) == 0
    assert image.settings("cat/0001-image.png")["prompts"] == ["a cat"]


def test_same_prompt_gives_the_source(run, capsys):
    assert run("edit", BOY, BOY) == 0
    assert Path("out/0001-source.png").read_bytes() == Path("out/0001-edited.png").read_bytes()
    assert "note: " in capsys.readouterr().out


def test_unknown_words_are_said(run, capsys, monkeypatch):
    monkeypatch.setattr("minedit.stack.tokens.Tokenizer.unknown", lambda self, prompt: ("dragon",))
    for command in (("generate", "a dragon"), ("edit", "a dragon", "a big dragon")):
        assert run(*command) == 0
        assert any("dragon" in line for line in capsys.readouterr().out.splitlines() if line.startswith("  note: "))


def test_letters_that_no_font_has_are_said_once(run, capsys, monkeypatch):
    monkeypatch.setattr(image, "OTHER_FONTS", ("no such font.ttf",))
    assert run("edit", "a 犬", "a big 犬", "--seed", 1, 2) == 0
    assert capsys.readouterr().out.count("note: no font here has 犬, boxes stand for them") == 1
    assert run("edit", BOY, SITTING) == 0
    assert "no font" not in capsys.readouterr().out


def test_nothing_in_common_is_said(run, capsys):
    assert run("edit", BOY, "two red apples") == 0
    assert "note: " in capsys.readouterr().out


def lora_file(path: str) -> None:
    """A LoRA of rank 1 on one layer of the small model, strong enough to be seen."""
    layer = "lora_unet_mid_block_attentions_0_proj_out"
    save_file({f"{layer}.lora_{half}.weight": normal(half, *shape) for half, shape in LORA.items()}, path)


LORA_FILE = "a b:c.safetensors"
LORA = {"down": (1, 32, 1, 1), "up": (32, 1, 1, 1)}


@pytest.mark.parametrize("verb, name", [(("generate", BOY), "image"), (("edit", BOY, SITTING), "edited")])
def test_loras_are_recorded_and_merged_again(run, weights, capsys, verb, name):
    lora_file("a b:c.safetensors")
    both = ("--lora", "a b:c.safetensors:0.5", "--lora", "a b:c.safetensors")
    for out, options in (("plain", ()), ("one", both[2:]), ("both", both)):
        assert run(*verb, *options, "--out", out) == 0
    said = capsys.readouterr().out
    assert "with the LoRA a b:c.safetensors, scale 0.5" in said and "scale 1\n" in said
    pictures = {out: Path(out, f"0001-{name}.png") for out in ("plain", "one", "both", "again", "none")}
    settings = {out: image.settings(pictures[out]) for out in ("plain", "one", "both")}
    assert "lora" not in settings["plain"] and [each[:2] for each in settings["one"]["lora"]] == [[LORA_FILE, 1.0]]
    assert [each[:2] for each in settings["both"]["lora"]] == [[LORA_FILE, 0.5], [LORA_FILE, 1.0]]
    assert not same(pictures["plain"], pictures["one"]) and not same(pictures["one"], pictures["both"])
    assert run(verb[0], "--from", pictures["both"], "--out", "again", few=False) == 0
    assert same(pictures["both"], pictures["again"]) and image.settings(pictures["again"]) == settings["both"]
    instead = ("--lora", "a b:c.safetensors:0")  # in place of those in the picture, as every option beside --from
    assert run(verb[0], "--from", pictures["both"], *instead, "--out", "none", few=False) == 0
    assert same(pictures["none"], pictures["plain"])


def test_a_preview_is_written_every_few_steps_and_changes_nothing(run, weights, monkeypatch):
    monkeypatch.setattr(output, "SD14", small_model().config)
    save_file(fill(TAESD()).state_dict(), "tiny.safetensors")
    shown = []
    preview = taesd.save_preview
    monkeypatch.setattr(taesd, "save_preview", lambda *args: shown.append(args[1].shape[0]) or preview(*args))
    assert run("edit", BOY, SITTING, "--preview", "tiny.safetensors", "--out", "few") == 0
    assert shown == [] and not Path("few/preview.png").exists()  # 3 steps
    for out, options in (("with", ("--preview", "tiny.safetensors")), ("without", ())):
        more = ("--steps", 11, "--model", weights, "--out", out, *options)
        assert run("edit", BOY, SITTING, *more, few=False) == 0
    assert shown == [2, 2]
    assert files(Path("with")) - files(Path("without")) == {"preview.png"}
    assert Path("with/0001-edited.png").read_bytes() == Path("without/0001-edited.png").read_bytes()
    with Image.open("with/preview.png") as picture:
        assert picture.width > 128  # both rows


def test_float16_overflow_is_a_mistake_with_its_remedy(run, weights, capsys):
    model = checkpoint.load(weights)
    weight = model.unet.middle_block[1].transformer_blocks[0].ff.net[0].proj.weight
    weight.mul_(6e4 / weight.abs().max())
    checkpoint.save(model, "hot.safetensors")
    assert run("generate", BOY, "--dtype", "float16", "--model", "hot.safetensors", "--steps", 2, few=False) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "NaN or infinity from the UNet at step 1 of 2 in float16" in line and "--dtype bfloat16 or float32" in line
    assert not Path("out").exists()
    weight.mul_(1e-3)
    last = model.vae.decoder.conv_out.weight
    last.mul_(6e4 / last.abs().max())
    checkpoint.save(model, "hot.safetensors")
    assert run("generate", BOY, "--dtype", "float16", "--model", "hot.safetensors", "--steps", 2, few=False) == 0
    assert "note: the decoder overflowed in float16" in capsys.readouterr().out


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no verb": ([], "VERB"),
    "unknown verb": (["draw"], "'draw'"),
    "unknown option": (["edit", BOY, SITTING, "--sed", 1], "--sed"),
    "no prompt": (["generate"], "no prompt"),
    "one prompt": (["edit", BOY], "SOURCE and TARGET"),
    "empty prompt": (["edit", BOY, ""], "''"),
    "blank prompt": (["generate", "  "], "'  '"),
    "over-long prompt": (["edit", BOY, "a very " * 40 + "tall boy"], "cut"),
    "unknown method": (["edit", BOY, SITTING, "--method", "magic"], "adapedit, adapedit+, p2p, masactrl"),
    "unknown device": (["edit", BOY, SITTING, "--device", "abacus"], "abacus"),
    "unknown dtype": (["edit", BOY, SITTING, "--dtype", "int8"], "int8"),
    "unknown attention": (["edit", BOY, SITTING, "--attention", "magic"], "magic"),
    "0 steps": (["edit", BOY, SITTING, "--steps", 0], "from 1 to 1000"),
    "1001 steps": (["edit", BOY, SITTING, "--steps", 1001], "from 1 to 1000"),
    "half a step": (["edit", BOY, SITTING, "--steps", 1.5], "whole"),
    "negative seed": (["generate", BOY, "--seed", -1], "0 or more"),
    "guidance nan": (["generate", BOY, "--guidance", "nan"], "'nan'"),
    "lambda_s 2": (["edit", BOY, SITTING, "--lambda-s", 2], "from 0 to 1"),
    "reweight": (["edit", BOY, SITTING, "--method", "p2p", "--reweight", "sitting"], "WORD=FACTOR"),
    "reweight of no word": (["edit", BOY, SITTING, "--method", "p2p", "--reweight", "dog=2"], "'dog'"),
    "setting of another method": (["edit", BOY, SITTING, "--method", "p2p", "--tau", 0.5], "p2p has no setting tau"),
    "unknown statistics": (["edit", BOY, SITTING, "--statistics", "first"], "last or mean"),
    "no checkpoint": (["edit", BOY, SITTING, "--model", "missing.ckpt"], "missing.ckpt"),
    "truncated checkpoint": (["edit", BOY, SITTING, "--model", "half.safetensors"], "half.safetensors"),
    "no LoRA": (["generate", BOY, "--lora", "none.safetensors:0.5"], "none.safetensors does not exist; expected"),
    "LoRA without a number": (["generate", BOY, "--lora", "text.ckpt:high"], "text.ckpt:high does not exist"),
    "not a LoRA": (["edit", BOY, SITTING, "--lora", "half.safetensors"], "half.safetensors"),
    "preview of another model": (
        ["generate", BOY, "--preview", "text.ckpt"],
        "--preview FILE is for Stable Diffusion v1",
    ),
    "not a checkpoint": (["edit", BOY, SITTING, "--model", "text.ckpt"], "text.ckpt"),
    "out is a file": (["edit", BOY, SITTING, "--out", "text.ckpt"], "text.ckpt"),
    "out below a file": (["generate", BOY, "--out", "text.ckpt/x/y"], "text.ckpt"),
    "prompts and pairs": (["edit", BOY, SITTING, "--pairs", "pairs.jsonl"], "one or the other"),
    "no such pairs": (["edit", "--pairs", "none.jsonl"], "none.jsonl"),
    "empty pairs": (["edit", "--pairs", "empty.jsonl"], "empty.jsonl"),
    "pairs not UTF-8": (["edit", "--pairs", "latin.jsonl"], "UTF-8"),
    "pairs not JSON": (["edit", "--pairs", "broken.jsonl"], "broken.jsonl line 2"),
    "pairs without target": (["edit", "--pairs", "lacking.jsonl"], "lacking.jsonl line 2"),
    "pairs with a long prompt": (["edit", "--pairs", "long.jsonl"], "long.jsonl line 3: "),
    "from no picture": (["edit", "--from", "text.ckpt"], "text.ckpt"),
    "from nothing": (["edit", "--from", "none.png"], "none.png"),
    "from a plain picture": (["edit", "--from", "plain.png"], "no settings"),
    "from other settings": (["edit", "--from", "foreign.png"], "foreign.png"),
    "from damaged settings": (["edit", "--from", "damaged.png"], "damaged.png are damaged"),
    "from a seed that is none": (["edit", "--from", "seeds.png"], "the seed in seeds.png is [1], expected a whole"),
    "from LoRAs that are none": (["edit", "--from", "loras.png"], "the LoRAs in loras.png are damaged"),
    "from the other verb": (["generate", "--from", "edit.png"], "minedit edit --from edit.png"),
    "from a picture with code": (["edit", "--from", "code.png"], "--attention"),
}


def mistaken_files(weights: Path) -> None:
    pair = json.dumps({"source": BOY, "target": SITTING})
    Path("half.safetensors").write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    Path("text.ckpt").write_text("<html>404</html>")
    Path("pairs.jsonl").write_text(pair)
    Path("empty.jsonl").write_text("\n\n")
    Path("latin.jsonl").write_bytes(b'{"source": "caf\xe9"}')
    Path("broken.jsonl").write_text(pair + "\n{'source': 'a'}")
    Path("lacking.jsonl").write_text(pair + '\n{"source": "a"}')
    Path("long.jsonl").write_text(f"{pair}\n\n{json.dumps({'source': BOY, 'target': 'very ' * 40})}")
    picture = Image.new("RGB", (8, 8))
    picture.save("plain.png")
    image.save("foreign.png", picture, {"verb": "paint"})
    settings = {"verb": "edit", "source": BOY, "target": SITTING, "method": "p2p", "seed": 0, "model": None}
    image.save("edit.png", picture, {**settings, "attention": "auto"})
    image.save("code.png", picture, {**settings, "attention": "os:system"})
    image.save("seeds.png", picture, {**settings, "attention": "auto", "seed": [1]})
    image.save("loras.png", picture, {**settings, "attention": "auto", "lora": [1]})
    image.save("damaged.png", picture, [1])


@pytest.mark.parametrize("argv, says", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(run, weights, capsys, argv, says):
    mistaken_files(weights)
    before = files(), {path for path in Path(".").rglob("*") if path.is_dir()}
    few = argv[:1] in (["edit"], ["generate"]) and "--steps" not in argv and "--model" not in argv
    assert run(*argv, few=few) == 2
    told = capsys.readouterr()
    line = told.err.splitlines()[-1]
    assert line.startswith("minedit: error: ") and says in line
    assert "Traceback" not in told.err and told.err.count("minedit: error") == 1
    assert (files(), {path for path in Path(".").rglob("*") if path.is_dir()}) == before


def test_a_picture_sets_nothing_but_settings(run):
    """One from elsewhere cannot say where files go or which are read."""
    assert run("edit", BOY, SITTING) == 0
    settings = image.settings("out/0001-edited.png") | {
        "out": "elsewhere",
        "pairs": "none.jsonl",
        "preview": "none.pth",
    }
    image.save("foreign.png", Image.new("RGB", (8, 8)), settings)
    assert run("edit", "--from", "foreign.png", few=False) == 0 and not Path("elsewhere").exists()


def test_memory_that_runs_out_is_one_line(run, capsys, monkeypatch):
    def exhausted(*_, **__):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(minedit.verbs.edit, "edit", exhausted)
    assert run("edit", BOY, SITTING) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("minedit: error: memory ran out")


def test_interrupted(run, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(minedit.verbs.edit, "edit", interrupt)
    assert run("edit", BOY, SITTING, "--out", "new/folder") == 130
    assert "interrupted" in capsys.readouterr().err and not Path("new").exists()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("train", "vae", "--scenes", 1), ("judge", "--images", 0)], ids=["train", "judge"])
def test_verbs_of_the_embedded_world(run, capsys, argv):
    assert run(*argv, few=False) == 2
    assert capsys.readouterr().err.startswith(f"minedit: error: argument {argv[-2]}: found '{argv[-1]}'")


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["edit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    for part in ("DDIM steps, 1 to 1000 (default: 50)", "(default: 7.5)", "--no-fwt", "--lambda-tau"):
        assert part in text


def test_as_a_module_from_another_folder(weights, tmp_path):
    command = [sys.executable, "-m", "minedit", "generate", "a dog", "--steps", "1", "--model", str(weights)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "0001-image.png").is_file()
