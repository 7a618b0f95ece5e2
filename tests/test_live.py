"""`minedit live`: edits drawn again one at a time, for this machine alone. Oracles: counts, and HTTP's own answers."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from http.client import HTTPConnection
from io import BytesIO
from types import SimpleNamespace

import pytest
from PIL import Image
from small_model import small_model

import minedit
from minedit.cli import main
from minedit.cli.live import again, dragged
from minedit.config import MineditError
from minedit.methods.choose import METHODS
from minedit.report.live import HOST, MOST, served
from minedit.report.page import xray
from minedit.report.studio import Studio
from minedit.sampling.numbers import Numbers
from minedit.settings import settings

PAIR = "a boy in the park", "a sitting boy in the park"
PATIENCE = 20  # seconds


def until(holds) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class Slow:
    """A drawing of 300 steps of a millisecond, which counts those at work."""

    def __init__(self) -> None:
        self.now, self.most, self.begun, self.ended, self.lock = 0, 0, [], [], threading.Lock()

    def __call__(self, asked, progress, show):
        with self.lock:
            self.now, self.begun = self.now + 1, [*self.begun, asked]
            self.most = max(self.most, self.now)
        try:
            for step in range(300):
                time.sleep(0.001)
                progress(step + 1, 300)
                show(Image.new("RGB", (16, 8), (step % 256,) * 3))
            if "wrong" in asked:
                raise MineditError("no such thing")
            self.ended.append(asked)
            colour = asked.get("seed", 0)
            image = Image.new("RGB", (8, 8), (colour,) * 3)
            return SimpleNamespace(html=f"page {colour}", result=SimpleNamespace(edited=image))
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def slow():
    return Slow()


def test_a_new_one_takes_the_place_of_the_one_at_work(slow):
    with Studio(slow) as studio:
        for seed in range(1, 6):
            studio.ask({"seed": seed})
            until(lambda seed=seed: {"seed": seed} in slow.begun)
        until(lambda: not studio.state()["busy"])
        assert slow.most == 1 and slow.ended == [{"seed": 5}] and studio.given_up == 4
        assert [each.number for each in studio.drawn] == [5]
        studio.ask({"seed": 9})
        until(lambda: not studio.state()["busy"])
        state = studio.state()
        assert [each["number"] for each in state["drawn"]] == [5, 6] and state["changed"] == pytest.approx(4)
    assert not studio.thread.is_alive()


def test_a_mistake_is_said_and_the_next_is_drawn(slow):
    with Studio(slow) as studio:
        studio.ask({"wrong": 1})
        until(lambda: not studio.state()["busy"])
        assert studio.state()["error"] == "no such thing" and not studio.drawn
        studio.ask({"seed": 1})
        until(lambda: not studio.state()["busy"])
        assert not studio.state()["error"] and len(studio.drawn) == 1


def test_the_end_does_not_wait_for_the_edit(slow):
    with Studio(slow) as studio:
        studio.ask({})
        until(lambda: slow.begun)
        began = time.monotonic()
    assert time.monotonic() - began < 0.25 and not slow.ended


@pytest.fixture
def server(slow):
    with Studio(slow) as studio, served(studio, {"settings": {"seed": {"label": "</script>"}}}) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield studio, server.server_address
        server.shutdown()
        thread.join()


def asks(address, method, path, body=None, **headers):
    line = HTTPConnection(*address, timeout=PATIENCE)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request(method, path, body, headers)
    answer = line.getresponse()
    return answer.status, answer.read().decode()


def test_other_hosts_are_refused(server):
    _, address = server
    port = address[1]
    assert address[0] == HOST == "127.0.0.1"
    right = {"Host": f"localhost:{port}", "Content_Type": "application/json"}
    assert asks(address, "GET", "/")[0] == asks(address, "GET", "/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}", f"127.0.0.1.evil.example:{port}"):
        assert asks(address, "GET", "/", Host=host)[0] == 403
        assert asks(address, "POST", "/ask", "{}", **{**right, "Host": host})[0] == 403
    for origin in ("https://evil.example", "null", f"http://evil.example:{port}"):
        assert asks(address, "POST", "/ask", "{}", Origin=origin, **right)[0] == 403
    assert asks(address, "POST", "/ask", "{}", Origin=f"http://localhost:{port}", **right)[0] == 200


def test_what_is_asked_is_checked(server):
    studio, address = server
    json_type = {"Content_Type": "application/json"}
    assert asks(address, "POST", "/ask", '{"seed": 7}', Content_Type="text/plain")[0] == 404
    for wrong in ("{", "[]", '{"image": 1}', '{"seed": NaN}'):
        assert asks(address, "POST", "/ask", wrong, **json_type)[0] == 400
    assert asks(address, "POST", "/ask", " " * (MOST + 1), **json_type)[0] == 413
    assert asks(address, "GET", "/etc/passwd")[0] == asks(address, "GET", "/page?1")[0] == 404
    assert studio.number == 0
    assert asks(address, "POST", "/ask", '{"seed": 7}', **json_type) == (200, '{"asked": 1}')
    until(lambda: not studio.state()["busy"])
    assert asks(address, "GET", "/page?1") == (200, "page 7")
    assert json.loads(asks(address, "GET", "/state")[1])["drawn"][0]["number"] == 1
    assert asks(address, "GET", "/")[1].count("</script>") == 2


def test_settings_are_the_methods():
    found = told("adapedit", tau=0.3)
    assert found["seed"]["value"] == 5 and found["tau"]["value"] == 0.3 and found["lambda_s"]["high"] == 1
    adapedit = METHODS["adapedit"]
    assert again(adapedit(), {"tau": 0.4, "lambda_s": 1, "seed": 3}) == adapedit(tau=0.4, lambda_s=1)
    found = told("p2p")
    assert found["weight1"]["label"] == "× dog" and found["weight1"]["value"] == 2 and "tau" not in found
    asked = again(METHODS["p2p"](reweight={"dog": 2}), {"weight0": 1.0, "weight1": 2.5})
    assert asked == METHODS["p2p"](reweight={1: 2.5})
    assert again(METHODS["p2p"](reweight={"dog": 2}), {"weight0": 1.0, "weight1": 1.0}) == METHODS["p2p"]()
    with pytest.raises(MineditError):
        again(adapedit(), {"tau": "much"})


def told(method, **given):
    return dragged(METHODS[method](**given), Numbers(steps=20), 5, [("a", 1.0), ("dog", 2.0)])


def test_the_numbers_of_every_method_are_dragged():
    """What has numbers for values, but for what is off beside a switch."""
    rest = {"blend_threshold", "subtract_threshold", "blend_start", "blend_size"}
    off = {"adapedit": rest, "p2p": rest, "h-edit": rest, "masactrl": {"foreground_level"}}
    for method, kind in METHODS.items():
        found = told(method)
        expected = [name for name, each in settings(kind).items() if each.kind in (int, float, tuple)]
        words = ["weight0", "weight1"] * ("reweight" in settings(kind))
        assert set(found) == {"seed", "guidance", *expected, *words} - off.get(method, set())
        for name, each in found.items():
            assert each["label"] and (each["high"] is None) == (name == "seed")
            for end in (each["low"], each["high"]) if name in settings(kind) else ():
                now = again(kind(), {name: end})  # each end is a value
                assert json.dumps(each) and getattr(now, name) == end
    assert told("masactrl")["start_step"]["high"] == 20 and told("masactrl")["start_layer"]["step"] == 1
    own = ["seed", "guidance", "lambda_tau", "lambda_sv", "lambda_s", "alpha_m", "tau", "fwt_steps", "rest"]
    assert list(told("adapedit"))[:9] == own
    assert told("flow")["source_guidance"]["high"] == told("p2p")["guidance"]["high"] == 20
    assert told("p2p", blend=["dog"]).keys() - told("p2p").keys() == rest - {"subtract_threshold"}
    assert not {"rest", "lambda_tau", "lambda_s"} & told("adapedit", fwt=False, dps=False).keys()


def test_a_span_is_dragged_by_its_end():
    found = told("p2p", self_steps=(0.1, 0.6))
    assert found["cross_steps"] | {"value": 0.8, "low": 0, "high": 1} == found["cross_steps"]
    assert (found["self_steps"]["low"], found["self_steps"]["value"]) == (0.1, 0.6)
    asked = again(METHODS["p2p"](self_steps=(0.1, 0.6)), {"cross_steps": 0.5, "self_steps": 0.7})
    assert asked == METHODS["p2p"](cross_steps=0.5, self_steps=(0.1, 0.7))
    with Studio(Slow()) as studio, served(studio, {"settings": found}) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        body, kind = '{"cross_steps": 0.5}', {"Content_Type": "application/json"}
        assert asks(server.server_address, "POST", "/ask", body, **kind)[0] == 200
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("verb", ["live", "xray"])
@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--seed", "3", "4"], "there are 2 seeds, and a page shows one edit; expected one"),
        (["--again"], "--again is for several runs, and a page shows one edit; leave it out"),
        (["--preview", "linear"], "--preview makes a preview, and a page shows one edit; leave it out"),
        (["--pairs", "x.jsonl"], "--pairs makes several edits, and a page shows one edit; leave it out"),
    ],
)
def test_what_asks_for_more_than_one_edit_is_refused(verb, wrong, said, capsys):
    assert main([verb, *PAIR, *wrong]) == 2
    assert capsys.readouterr().err.startswith(f"minedit: error: {said}")


def test_live_writes_no_files(capsys):
    for wrong in (["--out", "x"], ["--out=x"]):
        assert main(["live", *PAIR, *wrong]) == 2
        assert "--out names files, and live writes none; leave it out" in capsys.readouterr().err


def test_an_edit_is_given_up_between_steps():
    sd, steps, looks = small_model(), [], []

    def draw(asked, progress, show):
        def noted(done, total):
            steps.append((asked["seed"], done))
            if asked["seed"] == 1 and done == 2:
                studio.ask({"seed": 2})
            progress(done, total)

        def seen(picture):
            show(picture)
            looks.append((asked["seed"], picture.size, studio.state()["becoming"]))

        more = {"progress": noted, "on_step": minedit.preview(sd, show=seen)}
        return xray(sd, *PAIR, "p2p", steps=4, seed=asked["seed"], **more)

    with Studio(draw) as studio:
        studio.ask({"seed": 1})
        until(lambda: not studio.state()["busy"])
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 4)]
    assert [each.asked["seed"] for each in studio.drawn] == [2]
    assert [seed for seed, _, _ in looks] in ([1, 1, 2, 2, 2, 2], [1, 2, 2, 2, 2]) and studio.state()[
        "becoming"
    ] is None
    source, edited = (each.size for each in (studio.drawn[0].page.result.source, studio.drawn[0].page.result.edited))
    (size,) = {size for _, size, _ in looks}
    assert size[0] > size[1] and source == edited  # side by side
    shown = [Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB").size for _, _, url in looks]
    assert set(shown) == {size}
