"""Steps recorded and replayed. Oracle: the plain UNet, bit for bit where the recording is a repetition on a CPU."""

from __future__ import annotations

import copy
import gc
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from seeded import normal, relative
from small_model import TOKENS, small_model

import minedit
from minedit.attention.eager import eager
from minedit.attention.rules import Attn, Edit, Mask, Rule, Split
from minedit.config import MineditError
from minedit.speed import graphs
from minedit.speed.fast import fast
from minedit.speed.graphs import LIMIT, Recorded, Repeated, put_together, searched, taken_apart

PAIRS = (("a boy in the park", "a sitting boy in the park"), ("a dog on the beach", "a cat on the beach"))
WAYS = (("adapedit", {}), ("adapedit", {"fwt": "one-pass"}), ("p2p", {}), ("fixed-seed", {}), ("plug-and-play", {}))


def repeated(run):
    """As a CUDA graph does: results lie where they lay before, inputs are read from where they were."""
    eps, seen = run()

    def replay():
        new, saw = run()
        eps.copy_(new)
        for name, found in saw.items():
            seen[name].hidden.copy_(found.hidden)
            if found.columns is not None:
                seen[name].columns.copy_(found.columns)

    return replay, (eps, seen)


@pytest.fixture(scope="module")
def sd():
    return small_model()


@pytest.fixture
def replayed(sd):
    unet = copy.deepcopy(sd.unet)
    unet.forward = Recorded(unet.forward, repeated)
    return replace(sd, unet=unet)


@pytest.mark.parametrize("method,settings", WAYS)
def test_edits_are_the_same_and_recordings_few(sd, replayed, method, settings):
    for seed, pair in enumerate(PAIRS):
        ours, plain = (
            minedit.edit(model, *pair, method, seed=seed, steps=6, guidance=3.0, **settings) for model in (replayed, sd)
        )
        assert torch.equal(ours.source_latent, plain.source_latent)
        assert torch.equal(ours.edited_latent, plain.edited_latent)
        assert [word.tau for word in ours.words] == [word.tau for word in plain.words]
    assert 1 <= len(replayed.unet.forward.recordings) <= 8


def test_a_text_encoder_is_recorded_once_for_a_shape(sd):
    made = []

    def record(run):
        made.append(result := run())
        return lambda: result.copy_(run()), result

    encode = Repeated(sd.text.forward, record)
    for prompt in ("a boy in the park", "a dog on the beach", "a boy in the park"):
        ids = torch.tensor([sd.tokenizer.encode(prompt).ids])
        first = encode(ids)
        assert torch.equal(first, sd.text(ids))
        encode(torch.flip(ids, (1,)))
        assert torch.equal(first, sd.text(ids))  # what was returned is not written to
    encode(ids.repeat(2, 1))
    assert len(made) == 2


def test_a_text_encoder_that_cannot_be_recorded_runs_as_it_is(sd):
    def waits(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    ids = torch.tensor([sd.tokenizer.encode("a boy in the park").ids])
    assert torch.equal(Repeated(sd.text.forward, waits)(ids), sd.text(ids))


def inputs(rows=2):
    return normal("x", rows, 4, 8, 8), torch.tensor([500] * rows), normal("context", rows, TOKENS, 16)


def rules(sd, seed):
    draw = torch.Generator().manual_seed(seed)
    pin, mix = torch.rand(TOKENS, generator=draw), torch.rand(TOKENS, TOKENS, generator=draw)
    edit = Edit(1, 0, mix, pin, torch.zeros(TOKENS), 1 - pin)
    return {site.name: Rule(edits=(edit,)) for site in sd.unet.sites if site.kind == "cross"}


def test_rules_are_updated_in_place(sd, replayed):
    for seed in (0, 1, 0):
        attn = Attn(eager, rules(sd, seed))
        with torch.inference_mode():
            assert torch.equal(replayed.unet(*inputs(), attn), sd.unet(*inputs(), attn))
    assert len(replayed.unet.forward.recordings) == 1


def test_masks_are_updated_in_place_and_splits_made_anew(sd, replayed):
    """A Split reads what this step's cross-attention saw: of the recorded step, not of the one before it."""
    crossed = tuple(site.name for site in sd.unet.sites if site.kind == "cross" and site.stride == 2)
    (last,) = (s.name for s in sd.unet.sites if s.kind == "self" and s.name.startswith("output_blocks.3"))
    split = Split(crossed, (1, 0), ((2,), (3,)), (4, 4), (8, 8), 0.3)
    results = []
    for keys in (split, torch.eye(64) > 0, torch.ones(64, 64) > 0, torch.eye(64) > 0):
        for x in (1.0, 2.0):
            given = (x * inputs()[0], *inputs()[1:])
            attn = Attn(eager, {last: Rule(masks=(Mask(1, keys),))}, dict.fromkeys(crossed, True))
            with torch.inference_mode():
                ours, plain = replayed.unet(*given, replace(attn, seen={})), sd.unet(*given, attn)
            assert torch.equal(ours, plain)
            results.append(ours)
    assert not torch.equal(results[0], results[4]) and torch.equal(results[2], results[6])
    assert len(replayed.unet.forward.recordings) == 2


def test_another_kind_of_step_is_another_recording(sd, replayed):
    with torch.inference_mode():
        for step in (inputs(), inputs(3), (*inputs(), Attn(eager)), (*inputs(), Attn(eager, rules(sd, 0)))):
            assert torch.equal(replayed.unet(*step), sd.unet(*step))
    assert len(replayed.unet.forward.recordings) == 4
    with torch.inference_mode():
        for rows in range(1, LIMIT + 2):
            replayed.unet(*inputs(rows))
    assert len(replayed.unet.forward.recordings) <= LIMIT


def test_what_was_returned_stays(replayed):
    first = replayed.unet(*inputs())
    kept = first.clone()
    x, t, context = inputs()
    assert not torch.equal(replayed.unet(x + 1, t, context), kept)  # and outside of inference mode
    assert torch.equal(first, kept)


def test_a_latent_written_in_place_is_read_again(sd, replayed):
    x, t, context = inputs()
    before = replayed.unet(x, t, context)
    x += 1
    after = replayed.unet(x, t, context)
    with torch.inference_mode():
        assert not torch.equal(after, before) and torch.equal(after, sd.unet(x, t, context))


def test_taken_apart_and_put_together(sd):
    before, other = rules(sd, 0), rules(sd, 1)
    kind, tensors = taken_apart(before)
    assert kind == taken_apart(other)[0] and kind != taken_apart({})[0]
    again = put_together(other, tensors)
    for name, rule in before.items():
        assert torch.equal(again[name].edits[0].pin, rule.edits[0].pin)


def test_what_cannot_be_recorded_says_so(sd):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(MineditError, match="not permitted when stream is capturing.*leave out --fast"):
        Recorded(sd.unet.forward, refuse)(*inputs())


def test_a_search_leaves_cudnns_setting_as_it_was():
    before = torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), searched():
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark is before


def test_a_text_given_again_is_not_copied_again(sd, replayed):
    x, t, context = inputs()
    for text in (context, context, context + 1, context):
        with torch.inference_mode():
            assert torch.equal(replayed.unet(x, t, text), sd.unet(x, t, text))


class Pools:
    """What torch 2.11's CUDA does about graphs' memory, without CUDA.

    A pool whose graphs are gone takes no other. After a recording that failed none begins until its pool is told that
    it ended, no random number is drawn until one ended well, and its stream stays the current one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.current, self.users, self.underway, self.drawing = 0, "own", {}, set(), False
        for name in ("CUDAGraph", "graph", "stream", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
        monkeypatch.setattr(graphs, "_alive", {})

    def end(self, device: int, pool: int) -> None:
        if pool not in self.underway:
            raise RuntimeError("not currently recording to mempool_id")
        self.underway.remove(pool)

    def graph_pool_handle(self) -> int:
        self.made += 1
        return self.made

    def CUDAGraph(self) -> object:  # noqa: N802
        pools = self

        class Graph:
            id = None

            def pool(self) -> int:
                return self.id

            def replay(self) -> None: ...

            def __del__(self) -> None:
                if self.id is not None:
                    pools.users[self.id] -= 1

        return Graph()

    @contextmanager
    def stream(self, which: object):
        before, self.current = self.current, which
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, made, pool=None, *, stream):
        if self.underway:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        pool = self.graph_pool_handle() if pool is None else pool
        self.current, self.drawing = stream, True
        if self.users.get(pool, 1) == 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.users[pool] = self.users.get(pool, 0) + 1
        self.underway.add(pool)
        yield
        self.underway.remove(pool)
        made.id, self.drawing = pool, False


def test_recordings_share_memory_while_one_of_them_is_there(monkeypatch):
    pools = Pools(monkeypatch)
    first, second = (graphs.cuda_graph(lambda: "result") for _ in range(2))
    assert first[1] == "result" and pools.users == {1: 2}
    del first
    third = graphs.cuda_graph(lambda: None)
    assert pools.users == {1: 2}
    del second, third
    again = graphs.cuda_graph(lambda: None)
    assert pools.users == {1: 0, 2: 1} and again


def waits() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_recording_that_failed_leaves_nothing_behind(monkeypatch):
    pools = Pools(monkeypatch)
    kept = graphs.cuda_graph(lambda: None)
    with pytest.raises(RuntimeError, match="capturing"):
        graphs.cuda_graph(lambda: waits() if pools.underway else None)
    assert pools.current == "own" and not pools.underway and not pools.drawing
    after = graphs.cuda_graph(lambda: None)
    taken = {name for name, users in pools.users.items() if users}
    assert 1 in taken and len(taken) == 2 and kept and after  # a pool of its own: what failed stays in the first


def test_no_garbage_is_collected_while_a_step_is_recorded(monkeypatch):
    pools, seen = Pools(monkeypatch), []
    graphs.cuda_graph(lambda: seen.append((bool(pools.underway), gc.isenabled())))
    assert seen == [(False, True)] * graphs.WARM_UP + [(True, False)]
    with pytest.raises(RuntimeError):
        graphs.cuda_graph(lambda: waits() if pools.underway else None)
    assert gc.isenabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_what_waits_for_a_gpu_is_not_recorded_and_what_follows_is():
    x = torch.ones(4, device="cuda")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            graphs.cuda_graph(lambda: x.sum().item())
        torch.cuda.empty_cache()
        assert torch.rand(3, device="cuda").shape == (3,)
        replay, y = graphs.cuda_graph(lambda: x * 2)
        replay()
        assert y.tolist() == [2.0] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_model_is_recorded_after_another_is_gone():
    for seed in range(2):
        quick = fast(small_model(device="cuda"))
        minedit.generate(quick, ["a boy"], seed=seed, steps=2)
        stream = torch.cuda.current_stream()
        quick.unet.forward.recordings.clear()
        del quick
        gc.collect()
    assert stream == torch.cuda.default_stream()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("attention", ["sdpa", "triton"])
def test_cuda_graphs_on_a_gpu(sd, attention):
    plain = small_model(device="cuda", attention=attention)
    quick = fast(replace(plain, unet=copy.deepcopy(plain.unet), vae=copy.deepcopy(plain.vae)))
    for method, settings in WAYS:
        ours, theirs = (
            minedit.edit(model, *PAIRS[0], method, steps=6, guidance=3.0, **settings) for model in (quick, plain)
        )
        assert relative(ours.edited_latent.cpu(), theirs.edited_latent.cpu()) < 1e-3, method
