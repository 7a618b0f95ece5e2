"""Plans and Prompt-to-Prompt. Oracle: the algebra of google/prompt-to-prompt, written out here in float64."""

import pytest
import torch
from small_model import small_model

from minedit.attention.eager import eager
from minedit.config import MineditError
from minedit.methods import p2p, running
from minedit.methods.adapedit import AdapEditConfig
from minedit.methods.p2p import P2PConfig
from minedit.methods.plan import SELF_RULE, TARGET, Plan, first_steps, map_side, per_token

STEPS = 10
BOY, SITTING, DOG, RED = "a boy in the park", "a sitting boy in the park", "a dog in the park", "a red boy in the park"
QKV_SHAPES = (4, 2, 9, 5), (4, 2, 16, 5), (4, 2, 16, 5)  # 4 rows, 2 heads, 9 pixels, 16 tokens


@pytest.fixture(scope="module")
def model():
    return small_model()


def plan_of(model, source, target, **settings):
    prompts = model.tokenizer.encode(source), model.tokenizer.encode(target)
    return p2p.plan(model, *prompts, STEPS, P2PConfig(**settings)), *prompts


def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in QKV_SHAPES]


def edited_row(plan, step):
    """What the plan makes of the target row with random q, k, v: [H, N, D] float64."""
    q, k, v = qkv()
    rule = plan.rules(step).get(plan.cross_sites[0])
    return eager(q.float(), k.float(), v.float(), rule)[TARGET].double()


def official(step, mapper, alphas, end, equalizer=None):
    """AttentionControlEdit.forward of the released code, for one source and one target prompt."""
    q, k, v = qkv()
    base, replace = (q[2:] @ k[2:].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # [H, N, T] each
    new = torch.einsum("hpw,wn->hpn", base, mapper)
    new = new * alphas + replace * (1 - alphas)  # AttentionRefine; AttentionReplace is alphas = 1
    if equalizer is not None:
        new = new * equalizer  # AttentionReweight
    alpha_words = float(step < end)
    return (new * alpha_words + (1 - alpha_words) * replace) @ v[3]


# Every word of these prompts is one token: begin a (sitting|red) boy in the park end padding...
def identity():
    return torch.eye(16, dtype=torch.float64)


def inserted_after_a():
    """Refinement mapper of BOY -> SITTING: token 2 is new, later ones read the column to their left."""
    mapper, alphas = torch.zeros(16, 16, dtype=torch.float64), torch.ones(16, dtype=torch.float64)
    alphas[2] = 0
    for own in range(16):
        mapper[own if own < 2 else own - 1, own] = own != 2
    return mapper, alphas


@pytest.mark.parametrize("step", [0, 3, 7, 8, 9])
def test_replace_is_the_released_algebra(model, step):
    plan, *_ = plan_of(model, BOY, DOG)
    end = int(0.8 * (STEPS + 1))  # get_time_words_attention_alpha
    expected = official(step, identity(), torch.ones(16, dtype=torch.float64), end)
    assert torch.allclose(edited_row(plan, step), expected, atol=1e-5)
    assert [word.kind for word in plan.words] == ["kept", "replaced", "kept", "kept", "kept"]
    assert plan.notes == ("prompt-to-prompt: replace",)


@pytest.mark.parametrize("step", [0, 7, 8])
def test_refine_is_the_released_algebra(model, step):
    plan, *_ = plan_of(model, BOY, SITTING)
    expected = official(step, *inserted_after_a(), int(0.8 * (STEPS + 1)))
    assert torch.allclose(edited_row(plan, step), expected, atol=1e-5)
    assert [word.tau for word in plan.words] == [0.8, 0.0, 0.8, 0.8, 0.8, 0.8]
    assert plan.notes == ("prompt-to-prompt: refine",)


@pytest.mark.parametrize("step", [0, 7, 8])
def test_reweight_is_the_released_algebra(model, step):
    plan, *_ = plan_of(model, BOY, SITTING, reweight={"sitting": 3.0, "park": -1.0})
    equalizer = torch.ones(16, dtype=torch.float64)
    equalizer[2], equalizer[6] = 3.0, -1.0
    expected = official(step, *inserted_after_a(), int(0.8 * (STEPS + 1)), equalizer)
    assert torch.allclose(edited_row(plan, step), expected, atol=1e-5)


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_adapedits_reweight_is_that_of_every_step(model, step):
    """With one τ of 1 and no gate, AdapEdit is Prompt-to-Prompt to the last step."""
    settings = AdapEditConfig(tau=1, dps=False, reweight={"sitting": 3.0, "park": -1.0})
    plan = running.plan(model, *map(model.tokenizer.encode, (BOY, SITTING)), STEPS, settings, None)
    equalizer = torch.ones(16, dtype=torch.float64)
    equalizer[2], equalizer[6] = 3.0, -1.0
    expected = official(step, *inserted_after_a(), STEPS, equalizer)
    assert torch.allclose(edited_row(plan, step), expected, atol=1e-5)


def test_reweight_of_one_prompt_needs_no_other(model):
    plan, *_ = plan_of(model, BOY, BOY, reweight=[["park", 2.0]])
    equalizer = torch.ones(16, dtype=torch.float64)
    equalizer[5] = 2.0
    expected = official(0, identity(), torch.ones(16, dtype=torch.float64), 8, equalizer)
    assert torch.allclose(edited_row(plan, 0), expected, atol=1e-5)


def alpha_table(default, own):
    """get_time_words_attention_alpha for the target prompt: [steps + 1, 16]; own: tokens → their bounds."""
    table = torch.zeros(STEPS + 1, 16, dtype=torch.float64)
    for tokens, (begin, end) in [(range(16), default), *own.items()]:
        table[:, list(tokens)] = 0
        table[int(begin * (STEPS + 1)) : int(end * (STEPS + 1)), list(tokens)] = 1
    return table


@pytest.mark.parametrize("step", range(STEPS))
def test_each_word_has_its_window(model, step):
    """A refined edit with a weight: the inserted word's own column is scaled in its window alone."""
    words = {"sitting": (0.3, 0.5), "boy": 0.2, "the park": (0.5, 1.0)}
    settings = {"cross_steps": (0.1, 0.75), "cross_words": words, "reweight": {"sitting": 3.0, "park": 2.0}}
    plan, *_ = plan_of(model, BOY, SITTING, **settings)
    alpha = alpha_table((0.1, 0.75), {(2,): (0.3, 0.5), (3,): (0, 0.2), (5, 6): (0.5, 1.0)})[step]
    q, k, v = qkv()
    base, own = (q[2:] @ k[2:].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    mapper, alphas = inserted_after_a()
    scale = torch.ones(16, dtype=torch.float64)
    scale[2], scale[6] = 3.0, 2.0
    new = (torch.einsum("hpw,wn->hpn", base, mapper) * alphas + own * (1 - alphas)) * scale
    expected = (new * alpha + (1 - alpha) * own) @ v[3]
    assert torch.allclose(edited_row(plan, step), expected, atol=1e-5)
    shares = [0.7, 0.0, 0.2, 0.7, 0.5, 0.5]  # int(0.75 * 11) - int(0.1 * 11) = 7 of 10 steps; 10 - 5
    assert [word.tau for word in plan.words] == pytest.approx(shares)


def test_self_attention_has_a_window(model):
    plan, *_ = plan_of(model, BOY, DOG, self_steps=(0.25, 0.6))
    injected = [step for step in range(STEPS) if SELF_RULE in plan.rules(step).values()]
    assert injected == [2, 3, 4, 5]  # int(0.25 * 10) up to int(0.6 * 10)


def test_the_controller_by_name(model):
    """Replace reads by position where difflib would see a word removed and one inserted."""
    moved = "a boy sitting in park", "a sitting boy in park"
    plan, *_ = plan_of(model, *moved)
    assert plan.notes == ("prompt-to-prompt: refine",) and plan.columns[:, 2].sum() == 0
    plan, *_ = plan_of(model, *moved, controller="replace")
    assert plan.notes == ("prompt-to-prompt: replace",) and torch.equal(plan.columns, torch.eye(16))
    assert [word.kind for word in plan.words] == ["kept", "replaced", "replaced", "kept", "kept"]
    assert set(plan.pinned) == {(0, 8)}
    plan, *_ = plan_of(model, BOY, DOG, controller="refine")
    assert plan.notes == ("prompt-to-prompt: refine",) and plan.pinned[2] == (0, 0) and plan.pinned[3] == (0, 8)
    with pytest.raises(MineditError, match="^controller is replace, and the prompts have 5 and 6 words; expected as"):
        plan_of(model, BOY, SITTING, controller="replace")


def test_self_attention_is_injected_into_coarse_maps_for_its_steps(model):
    plan, *_ = plan_of(model, BOY, DOG)
    coarse = {s.name for s in model.unet.sites if s.kind == "self" and map_side(s, model.config) == 4}
    fine = {s.name for s in model.unet.sites if s.kind == "self"} - coarse
    assert coarse and fine
    for step in range(STEPS):
        selves = {name for name, rule in plan.rules(step).items() if rule is SELF_RULE}
        assert selves == (coarse if step < int(0.4 * STEPS) else set())
    assert SELF_RULE.q_rows == SELF_RULE.k_rows == (0, 1, 2, 2) and SELF_RULE.v_rows is None


def test_cross_steps_are_counted_as_in_the_released_code(model):
    """int(0.95 * 11) = 10 of 10 steps: its table of alphas has one row more than there are steps."""
    plan, *_ = plan_of(model, BOY, DOG, cross_steps=0.95, self_steps=0.95)
    assert set(plan.pinned) == {(0, 10)} and plan.self_steps == (0, 9)


def test_only_the_conditional_target_row_is_edited(model):
    q, k, v = (x.float() for x in qkv())
    plain = eager(q, k, v)
    for source, target in ((BOY, DOG), (BOY, SITTING), (SITTING, BOY)):
        plan, *_ = plan_of(model, source, target)
        out = eager(q, k, v, plan.rules(0)[plan.cross_sites[0]])
        assert torch.equal(out[:TARGET], plain[:TARGET])
        assert not torch.equal(out[TARGET], plain[TARGET])


def test_no_steps_change_nothing(model):
    plan, *_ = plan_of(model, BOY, DOG, cross_steps=0, self_steps=0)
    assert all(plan.rules(step) == {} for step in range(STEPS))
    assert all(Plan().rules(step) == {} for step in range(STEPS))


def test_rules_are_a_pure_function_of_the_step(model):
    plan, *_ = plan_of(model, BOY, SITTING, reweight={"sitting": 2})
    name = plan.cross_sites[0]
    first = [plan.rules(step)[name].edits[0] for step in (0, 5)]
    again = [plan.rules(step)[name].edits[0] for step in (5, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("pin", "blend", "own", "columns"))


def test_per_token_spreads_words_over_their_tokens(model):
    prompt = model.tokenizer.encode("a boy, sitting")
    spread = per_token(prompt, list("xyzw")[: len(prompt.words)], "-")
    assert spread[0] == "-" and set(spread[prompt.length - 1 :]) == {"-"}
    assert [spread[token] for word in prompt.words for token in word.tokens] == ["x", "y", "z", "w"]


@pytest.mark.parametrize(
    "fraction, steps, count",
    [(0, 10, 0), (1, 10, 10), (0.8, 50, 40), (0.55, 20, 11), (0.7, 10, 7), (0.01, 10, 1), (2, 5, 5)],
)
def test_first_steps_counts_those_below(fraction, steps, count):
    assert first_steps(fraction, steps) == count


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_steps": 1.1},
        {"cross_steps": float("nan")},
        {"self_steps": -0.1},
        {"self_steps": True},
        {"reweight": {"sitting": float("inf")}},
        {"reweight": {"cat": 2.0}},
        {"reweight": {17: 2.0}},
        {"reweight": {"a": 2.0}},
        {"cross_words": {"cat": 0.5}},
        {"cross_words": {"sitting": 1.5}},
        {"cross_words": {"sitting": (0.5, 0.4)}},
        {"cross_words": {"sitting": (0.1, 0.2, 0.3)}},
        {"cross_steps": (0.1, None)},
        {"self_steps": [0.5]},
        {"controller": "replace"},
        {"controller": "refined"},
        {"blend_subtract": ["boy"]},
        {"blend": [1]},
    ],
)
def test_bad_settings_are_one_line_errors(model, settings):
    with pytest.raises(MineditError) as error:
        plan_of(model, BOY, "a sitting boy in a park", **settings)
    assert "\n" not in str(error.value)


def test_a_repeated_word_is_reweighted_by_its_index(model):
    plan, _, target = plan_of(model, BOY, "a sitting boy in a park", reweight={4: 2.0})
    assert [j for j, w in enumerate(plan.weights) if w != 1] == list(target.words[4].tokens)


@pytest.mark.parametrize(
    "word, named",
    [("every red", [1, 5]), ("every red cat", [1, 2, 5, 6]), ("every and", [3]), ("every a", [0, 4]), (5, [5])],
)
def test_every_place_where_a_text_stands(model, word, named):
    plan, *_ = plan_of(model, BOY, "a red cat and a red cat", reweight={word: 2.0})
    assert [j for j, w in enumerate(plan.weights) if w != 1] == [index + 1 for index in named]


def test_a_text_with_every_that_stands_in_the_prompt_is_that_text(model):
    plan, *_ = plan_of(model, BOY, "every boy and a boy", reweight={"every boy": 2.0})
    assert [j for j, w in enumerate(plan.weights) if w != 1] == [1, 2]


@pytest.mark.parametrize(
    "target, word, named",
    [
        ("3 boys in the park", "3", [0]),  # was the word at index 3, "the"
        ("3 boys in the park", 3, [3]),
        ("two boys in the park", "3", [3]),
        ("a boy in a t-shirt", "t-shirt", [4, 5, 6]),  # was "not in the target prompt", as were all that follow
        ("a Sitting Boy in the park", "sitting boy", [1, 2]),
        ("a boy's hat", "boy's", [1, 2]),
        ("a boy's hat", "BOY", [1]),
        ("12 boys", "12", [0, 1]),  # CLIP splits numbers into digits
        ("a sunhat in the park", "sunhat", [1]),
    ],
)
def test_a_text_names_a_word_before_an_index_and_all_its_pieces(model, target, word, named):
    """The bug: `--reweight 3=4` on "3 boys" reweighted "the", and "t-shirt" was no word of a prompt."""
    plan, _, prompt = plan_of(model, BOY, target, reweight={word: 4.0})
    tokens = [token for index in named for token in prompt.words[index].tokens]
    assert [j for j, w in enumerate(plan.weights) if w != 1] == tokens


@pytest.mark.parametrize(
    "word, said",
    [
        ("boy sitting", "the word 'boy sitting' is not in the target prompt; its words are a, red"),
        (
            "a red cat",
            "'a red cat' stands at [0, 4] in the target prompt; give the indices of its words, or 'every a red cat'",
        ),
        (
            "red",
            "the word 'red' stands at [1, 5] in the target prompt; give one of these indices, or 'every red', instead",
        ),
        ("7", "word 7 of the target prompt, which has 7; expected 0 to 6"),
        ("", "the word '' is not in"),
        ("9" * 5000, "is not in"),
    ],
)
def test_a_text_that_names_no_word_or_several_is_an_error(model, word, said):
    with pytest.raises(MineditError) as error:
        plan_of(model, BOY, "a red cat and a red cat", reweight={word: 2.0})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_spread_is_a_setting_that_only_words_of_other_lengths_notice(model):
    maps = {
        (target, spread): plan_of(model, BOY, target, spread=spread)[0].columns
        for target in (DOG, "a sunhat in the park")
        for spread in ("mean", "sum")
    }
    assert torch.equal(maps[DOG, "mean"], maps[DOG, "sum"])
    mean, total = maps["a sunhat in the park", "mean"], maps["a sunhat in the park", "sum"]
    assert mean[2, 2:4].tolist() == [1, 1] and total[2, 2:4].tolist() == [0.5, 0.5]
    with pytest.raises(MineditError, match="spread is 'half', expected mean or sum"):
        P2PConfig(spread="half")
