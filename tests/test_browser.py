"""The page of an edit in Chromium, where there is one: `make browser`. What is seen is read from pixels."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from chromium import PATIENCE, Tab, found
from PIL import Image

import minedit
from minedit import METHODS
from minedit.cli.live import again, dragged
from minedit.report.arrays import unpacked
from minedit.report.live import served
from minedit.report.page import xray
from minedit.report.studio import Studio
from minedit.sampling.numbers import Numbers

pytestmark = pytest.mark.skipif(found() is None, reason="no Chromium here; BROWSER_BIN=... names one")
PAIR = "a cat in the park", "a sitting dog in the park"
SIZES = ((1600, False), (1600, True), (400, False), (400, True))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    made = xray(minedit.load(), *PAIR, steps=6, seed=3)
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(made.html, encoding="utf-8")
    return made, file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Tab(found(), tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture
def tab(browser, page):
    browser.faults.clear(), browser.asked.clear()
    browser.size(1600, 1000)
    browser.open(page[1])
    yield browser
    assert browser.faults == []
    assert {address.partition(":")[0] for address in browser.asked} <= {"file", "data"}


def seen(tab, selector: str) -> bytes:
    """The pixels of a canvas."""
    return tab.run(f"document.querySelector('{selector}').toDataURL()")


def text(tab, selector: str) -> str:
    return tab.run(f"document.querySelector('{selector}').textContent")


def shot(tab, whole: bool = False) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tab.picture(whole))).convert("RGB"), float)


@pytest.mark.parametrize("width, dark", SIZES)
def test_is_seen_at_this_size(tab, width, dark):
    tab.size(width, 900, dark)
    tab.settle()
    pixels = shot(tab)
    assert pixels.std() > 20 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    back = np.median(pixels[:, :6].reshape(-1, 3), axis=0).mean()
    assert back < 60 if dark else back > 200
    assert tab.run("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll('button, select, input, canvas, svg, table, p, h2')]
      .filter(e => e.offsetParent && !e.classList.contains('hidden'))
      .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
      .map(e => e.outerHTML.slice(0, 80))"""
    assert tab.run(beyond) == []


def test_scrubber_changes_what_is_shown(tab):
    changing = "x0-0", "x0-1", "x0-2", "map-2", "gate"
    before = [seen(tab, f"#{each}") for each in changing]
    where = text(tab, "#where")
    tab.run("step.value = 5; step.dispatchEvent(new Event('input'))")
    tab.settle()
    assert text(tab, "#where") == "step 6 of 6, time 1" != where
    after = [seen(tab, f"#{each}") for each in changing]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_word_buttons_and_layers_change_the_maps(tab):
    tab.click("#words li:nth-child(6) button")
    assert text(tab, "#word-now") == "park"
    assert tab.run("document.querySelectorAll('#words [aria-pressed=true]').length") == 1
    park, film = seen(tab, "#map-0"), seen(tab, "#film button:last-child canvas")
    tab.click("#words li:nth-child(3) button")
    assert text(tab, "#word-now") == "dog" and "“cat”" in text(tab, "#maps figure small")
    assert seen(tab, "#map-0") != park and seen(tab, "#film button:last-child canvas") != film
    dog = seen(tab, "#map-0")
    tab.run("layer.value = 2; layer.dispatchEvent(new Event('change'))")
    tab.settle()
    assert seen(tab, "#map-0") != dog


def test_map_says_what_was_recorded(tab, page):
    """The percentages under the maps, from the page's own arrays decoded here."""
    data = page[0].data
    tab.run("choose({step: 3, word: 2, layers: LAYERS.length - 1})")
    tab.settle()
    for kind in range(3):
        most = unpacked(data["maps"][-1])[3, kind, 2].max().item()
        said = tab.run(f"document.querySelectorAll('#maps figure small')[{kind}].textContent")
        assert f"{100 * most:.{int(most < 0.0995)}f}\u00a0% at most" in said


def test_weights_of_pixels_are_those_of_the_step(tab, page):
    """S as it was recorded, from the page's own arrays decoded here."""
    for step in range(6):
        tab.run(f"choose({{step: {step}}})")
        tab.settle()
        each = next(found for found in page[0].data["spatial"] if found["step"] == step)
        said = tab.run("document.querySelector('#spatial figure small').textContent")
        assert f"mean {each['mean']:.2f}, " in said and f"most {unpacked(each).max().item():.2f} " in said
        assert tab.run("document.querySelector('#film-s [aria-current=true]').dataset.step") == str(step)
    assert len({each["mean"] for each in page[0].data["spatial"]}) > 6


def test_slider_uncovers_the_edit(tab):
    box = tab.run("(() => { const b = source.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()")
    x, y, w, h = (round(each) for each in box)
    images = []
    for share in (0, 100):
        tab.run(f"slider.value = {share}; slider.dispatchEvent(new Event('input'))")
        tab.settle()
        images.append(shot(tab)[y + 8 : y + h - 8, x + 8 : x + w - 8])
    assert (text(tab, "#share")) == "the edit"
    page_pictures = [np.asarray(each.resize((w, h)), float)[8:-8, 8:-8] for each in _pair(tab)]
    for image, own, other in zip(images, page_pictures, page_pictures[::-1], strict=True):
        assert np.abs(image - own).mean() < 6 < np.abs(image - other).mean()


def _pair(tab):
    import base64

    for name in ("source", "edited"):
        code = tab.run(f"{name}.src").partition(",")[2]
        yield Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")


def test_keys(tab):
    tab.press("Home")
    assert text(tab, "#where").startswith("step 1 of 6")
    first = seen(tab, "#x0-1")
    tab.press("ArrowRight"), tab.press("ArrowRight")
    assert text(tab, "#where").startswith("step 3 of 6") and seen(tab, "#x0-1") != first
    tab.press("ArrowLeft")
    assert text(tab, "#where").startswith("step 2 of 6")
    tab.press("6")
    assert text(tab, "#word-now") == "park" and "park" in text(tab, "#said")
    before = seen(tab, "#map-1")
    tab.press("]")
    assert seen(tab, "#map-1") != before
    rough = seen(tab, "#map-1")
    tab.press("m")
    assert seen(tab, "#map-1") != rough
    tab.press("s")
    assert text(tab, "#share") == "the edit"
    tab.press("End")
    assert text(tab, "#where").startswith("step 6 of 6")


def test_blocks_are_chosen(tab, page):
    for at, block in enumerate(page[0].data["blocks"]):
        tab.click(f"[data-block='{at}']")
        assert text(tab, "#block h3") == block["name"]
        assert f"{block['shape'][0]} channels" in text(tab, "#block p")
    assert tab.run("document.querySelectorAll('#block svg').length") == 3


def test_plays_to_the_end(tab):
    tab.press("Home")
    tab.click("#play")
    tab.until("document.getElementById('where').textContent.startsWith('step 6')")
    tab.until("document.getElementById('play').getAttribute('aria-pressed') === 'false'")


def test_everything_has_a_name(tab):
    """By the browser's own tree of what a screen reader reads."""
    tab.call("Accessibility.enable")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "checkbox", "combobox", "image", "img"}
    named = [each for each in nodes if each.get("role", {}).get("value") in roles and not each.get("ignored")]
    nameless = [each["role"]["value"] for each in named if not each.get("name", {}).get("value")]
    assert len(named) > 40 and not nameless


def test_live_draws_again_what_is_dragged(browser):
    sd, chosen, seen = minedit.load(), METHODS["adapedit"](), threading.Event()
    words = [(word, 1.0) for word in PAIR[1].split()]

    def draw(asked, progress, show):
        def shown(picture):
            show(picture)
            seen.wait(PATIENCE)

        more = {"progress": progress, "on_step": minedit.preview(sd, show=shown)}
        return xray(sd, *PAIR, steps=4, seed=3, settings=again(chosen, asked), **more)

    with Studio(draw) as studio, served(studio, {"settings": dragged(chosen, Numbers(), 3, words)}) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        browser.faults.clear()
        browser.size(1600, 1000)
        studio.ask({})
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/")
        browser.until("!becoming.hidden && becoming.naturalWidth > becoming.naturalHeight")
        if "SHOTS" in os.environ:
            (Path(os.environ["SHOTS"]) / "becoming.png").write_bytes(browser.picture())
        seen.set()
        title = "document.getElementById('page').contentDocument?.title || ''"
        browser.until(f"({title}).includes('sitting dog')")
        browser.until("becoming.hidden")
        browser.run("page.contentWindow.choose({step: 3, word: 5})")
        drag = "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }"
        browser.run(f"for (const v of [0.2, 0.5, 1]) ({drag})(tau, v); ({drag})(rest, 0.3); ({drag})(fwt_steps, 3)")
        browser.until("document.getElementById('changed').textContent.includes('of 255')")
        assert studio.number == 2  # moves within 60 ms are one question
        assert {"tau": 1, "rest": 0.3, "fwt_steps": 3, "lambda_s": 0.95}.items() <= studio.drawn[-1].asked.items()
        browser.until(f"page.src.endsWith('?{studio.drawn[-1].number}')")
        assert browser.run("before.src !== now.src && before.naturalWidth > 0")
        now = "document.getElementById('page').contentDocument.getElementById('{}')?.textContent || ''"
        browser.until(f"({now.format('word-now')}) === 'park' && ({now.format('where')}).startsWith('step 4')")
        notes = "document.getElementById('page').contentDocument.getElementById('notes')"
        assert "had no effect: rest beside tau=1" in browser.run(f"{notes}.textContent")
        assert browser.run(f"{notes}.getBoundingClientRect().height > 0")
        for width in (400, 1600):
            browser.size(width, 1000, dark=width == 400)
            browser.settle()
            assert browser.run("document.documentElement.scrollWidth") <= width
            ends = "[...document.querySelectorAll('label, input, output')].map(e => e.getBoundingClientRect().right)"
            assert browser.run(f"Math.max(...{ends})") <= width
            if "SHOTS" in os.environ:
                (Path(os.environ["SHOTS"]) / f"live-{width}.png").write_bytes(browser.picture())
        browser.run("document.getElementById('tau-free').click()")
        browser.until("document.getElementById('said').textContent === 'edit 3 is drawn'")
        assert studio.drawn[-1].asked["tau"] is None
        server.shutdown()
        thread.join()
    assert browser.faults == []
