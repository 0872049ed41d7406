"""The explorer in a real browser: drop, slide, force, save, by mouse and by keyboard, on a phone and on a desk."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import ABSENT, CHROMIUM, launched
from PIL import Image
from torch import Tensor, nn

from explore.serving import SCENES, Place, digits_session, served
from selkern.explore.session import Ask, Session
from selkern.explore.view import View

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=ABSENT)
ARGS = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WIDTHS = (390, 1000, 1600)  # px: a phone, a tablet, a desk


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched(sync_api, *ARGS) as started:
        yield started


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with served(digits_session()) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Session:
    """Answers as the page's session gives them; a session of its own, since one thread alone may look."""
    return digits_session()


@contextmanager
def opened(browser: Any, place: Place, hash_: str = "", *, width: int = 1200, **context: Any) -> Iterator[Any]:
    """The page once it shows its first figures; at its end it has asked nobody else and has had no errors."""
    inside = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **context)
    page = inside.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(place.address + hash_)
    page.locator(".classes li").first.wait_for()
    yield page
    strange = [url for url in asked if not url.startswith((place.address, "data:", f"blob:{place.address}"))]
    assert strange == []
    # Chromium itself notes every answer that is an error.
    assert [line for line in said if not line.startswith("Failed to load resource")] == []
    inside.close()


def png(size: tuple[int, int] = (80, 60), level: int | None = None) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    (Image.fromarray(pixels) if level is None else Image.new("RGB", size, (level,) * 3)).save(data, "PNG")
    return data.getvalue()


def drop(page: Any, files: dict[str, bytes]) -> None:
    """Files dropped onto the first pane."""
    made = page.evaluate_handle(
        "files => { const made = new DataTransfer();"
        "for (const [name, bytes] of Object.entries(files)) made.items.add(new File([Uint8Array.from(bytes)], name));"
        "return made; }",
        {name: list(data) for name, data in files.items()},
    )
    page.dispatch_event(".pane", "dragover", {"dataTransfer": made})
    page.dispatch_event(".pane .stage", "drop", {"dataTransfer": made})


def picked(page: Any) -> Any:
    """The chosen option of the first pane's pictures."""
    return page.locator(".pane").first.locator("[data-at=picture] option:checked")


def points(page: Any) -> int:
    """How many sizes the curve joins."""
    return len(re.findall("[ML]", page.locator(".curve .line path").first.get_attribute("d") or ""))


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.exhaustive)])
def test_it_fits_every_width_with_one_picture_and_with_two(scheme: str, browser: Any, place: Place) -> None:
    with opened(browser, place, "#a.unit=2", color_scheme=scheme) as page:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 24, 30)"}[scheme]
        for two in (False, True):
            page.locator("#two").set_checked(two)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, two)
                boxes = page.evaluate(
                    "[...document.querySelectorAll('.pane:not([hidden]) :is(.stage, .bar, .curve svg, select, button)')"
                    "].filter(e => e.checkVisibility() && !e.closest('.strip')).map(e => {"
                    "const b = e.getBoundingClientRect(); return [b.left, b.right, b.width, b.height]})"
                )
                assert len(boxes) > 20 * (1 + two)
                for left, right, wide, high in boxes:
                    assert 0 <= left < right <= width
                    assert wide > 25
                    assert high > 10


def test_a_dropped_picture_is_shown_as_the_session_shows_it(browser: Any, place: Place, reference: Session) -> None:
    with opened(browser, place) as page:
        drop(page, {"mine <b>.png": png()})
        page.get_by_role("group", name="pictures").first.locator("img").nth(SCENES).wait_for()
        assert picked(page).inner_text() == "mine <b>.png"
        name = picked(page).get_attribute("value")
        assert name == reference.pictures.add(png())
        top = reference.look(Ask(picture=name))["top"]
        sync_api.expect(page.locator(".classes li").first).to_contain_text(top[0]["class"])
        sync_api.expect(page.locator(".classes li").first).to_contain_text(f"{100 * top[0]['p']:.1f} %")


def test_figures_follow_the_slider_and_the_curve_grows(browser: Any, place: Place, reference: Session) -> None:
    with opened(browser, place, "#a.picture=r3") as page:
        slider = page.get_by_role("slider", name="Size").first
        assert points(page) == 1
        before = page.locator(".stage img").first.get_attribute("src")
        for size in ("1.4", "1.8", "2.2"):
            slider.fill(size)
            sync_api.expect(page.locator(".slider.size output").first).to_have_text(f"{float(size):.2f}×")
            answer = reference.look(Ask(picture="r3", view=View(size=float(size))))
            sync_api.expect(page.locator(".stage img").first).to_have_attribute("src", answer["image"])
            share = f"{100 * answer['units'][0][1]:.0f} %"
            sync_api.expect(page.locator(".line-of-unit .value").first).to_have_text(share)
        assert page.locator(".stage img").first.get_attribute("src") != before
        assert points(page) == 4
        sync_api.expect(page).to_have_url(re.compile("a.size=2.2"))
        page.get_by_role("button", name="Sweep sizes").first.click()
        sync_api.expect(page.get_by_role("button", name="Stop").first).to_be_visible()
        sync_api.expect(page.get_by_role("button", name="Sweep sizes").first).to_be_visible(timeout=20_000)
        assert points(page) >= 25
        assert slider.input_value() == "2.2"
        page.locator(".stage").first.click(position={"x": 40, "y": 40})  # another centre, another curve
        sync_api.expect(page).to_have_url(re.compile("a.x=0"))
        assert points(page) == 1


def test_a_forced_unit_changes_the_prediction_and_says_so(browser: Any, place: Place, reference: Session) -> None:
    with opened(browser, place, "#a.picture=r3") as page:
        page.get_by_role("combobox", name="All units: what they choose").first.select_option("small")
        answer = reference.look(Ask(picture="r3", choices=dict.fromkeys(range(6), "0")))
        first = page.locator(".classes li").first
        sync_api.expect(first).to_contain_text(f"{100 * answer['top'][0]['p']:.1f} %")
        change = 100 * (answer["top"][0]["p"] - answer["top"][0]["own"])
        sync_api.expect(first).to_contain_text(f"{change:+.1f}".replace("-", "−"))
        sync_api.expect(page.locator(".line-of-unit .value").first).to_have_text("0 %")
        sync_api.expect(page.locator("[role=status]").first).to_contain_text("Left to their gates")
        sync_api.expect(page).to_have_url(re.compile("a.units=0:0,1:0,2:0,3:0,4:0,5:0"))
        page.get_by_role("combobox", name="SK_3_1: what it chooses").first.select_option("")
        every = page.get_by_role("combobox", name="All units: what they choose").first
        sync_api.expect(every).to_have_value("mixed")
        page.get_by_role("button", name="Reset").first.click()
        sync_api.expect(page.locator(".classes.changed")).to_have_count(0)


@pytest.mark.exhaustive
def test_the_other_picture_s_selection_is_taken(browser: Any, place: Place, reference: Session) -> None:
    with opened(browser, place, "#a.picture=r3") as page:
        page.get_by_role("combobox", name="SK_2_2: what it chooses").first.select_option("other")
        panes = page.locator(".pane")
        sync_api.expect(panes.nth(1)).to_be_visible()
        panes.nth(1).get_by_role("combobox", name="Picture").select_option("r5")
        theirs = reference.look(Ask(picture="r5"))["units"][1]
        value = panes.nth(0).locator(".line-of-unit .value").nth(1)
        sync_api.expect(value).to_have_text(f"{100 * theirs[1]:.0f} %")
        page.get_by_label("move both together").check()
        panes.nth(1).get_by_role("slider", name="Turn").fill("45")
        sync_api.expect(panes.nth(0).locator(".slider.turn output")).to_have_text("45°")
        theirs = reference.look(Ask(picture="r5", view=View(turn=45)))["units"][1]
        sync_api.expect(value).to_have_text(f"{100 * theirs[1]:.0f} %")


def test_what_is_saved_is_what_is_shown(browser: Any, place: Place, reference: Session, tmp_path: Path) -> None:
    with opened(browser, place, "#a.picture=r3&a.size=2&a.units=4:1") as page:
        with page.expect_download() as picture:
            page.get_by_role("button", name="Save PNG").first.click()
        assert picture.value.suggested_filename == "digits-r3.png"
        picture.value.save_as(tmp_path / "saved.png")
        saved = Image.open(tmp_path / "saved.png").convert("RGB")
        assert saved.width == 2000
        cut = np.asarray(saved.crop((56, 160, 856, 960)).resize((48, 48), Image.Resampling.BOX)).astype(float)
        image = page.locator(".stage img").first.get_attribute("src")
        shown = np.asarray(Image.open(io.BytesIO(_bytes_of(image))).convert("RGB")).astype(float)
        outside = np.ones((48, 48), bool)
        outside[20:28, 20:28] = False  # where the cross is drawn over it
        assert np.abs(cut - shown)[outside].mean() < 4
        assert len(saved.getcolors(1 << 24) or []) > 100
        with page.expect_download() as table:
            page.get_by_role("button", name="Save CSV").first.click()
        table.value.save_as(tmp_path / "saved.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "saved.csv").read_text(encoding="utf-8"))))
        answer = reference.look(Ask(picture="r3", view=View(size=2), choices={4: "1"}))
        shares = [share for row in answer["units"] for share in row]
        assert [float(row["selection"]) for row in rows if row["size"] == "2"] == shares
        assert {row["class"] for row in rows} == {answer["top"][0]["class"]}
        assert [row["made_to_choose"] for row in rows if row["unit"] == "SK_4_1"] == ["1", "1"]


def _bytes_of(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.partition(",")[2])


def test_the_keyboard_alone_suffices(browser: Any, place: Place) -> None:
    def to(page: Any, name: str) -> None:
        """Press Tab until the focus is at what has this name."""
        for _ in range(60):
            page.keyboard.press("Tab")
            here = page.evaluate(
                "(e => e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())"
                "(document.activeElement)"
            )
            if here.startswith(name):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"the focus at {name} is not seen"
                return
        raise AssertionError(f"Tab does not lead to {name}")

    with opened(browser, place, "#a.picture=r3") as page:
        to(page, "Picture")
        before = picked(page).get_attribute("value")
        page.keyboard.press("ArrowDown")
        assert picked(page).get_attribute("value") != before
        page.locator("body").evaluate("document.activeElement.blur()")
        to(page, "The picture as the network sees it")
        page.keyboard.press("ArrowLeft")
        sync_api.expect(page.locator(".slider.x output").first).to_have_text("48 %")
        page.keyboard.press("+")
        sync_api.expect(page.locator(".slider.size output").first).to_have_text("1.05×")
        to(page, "Size")
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        sync_api.expect(page.locator(".slider.size output").first).to_have_text("1.10×")
        to(page, "Turn")
        page.keyboard.press("End")
        sync_api.expect(page.locator(".slider.turn output").first).to_have_text("180°")
        to(page, "SK_2_1")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator(".more figure").first).to_be_visible()
        sync_api.expect(page.locator(".hint").first).to_contain_text("SK_2_1")
        to(page, "sorted")
        page.keyboard.press("Space")
        heights = [float(h) for h in re.findall("V([0-9.]+)h1", page.locator(".channels path").get_attribute("d"))]
        assert heights == sorted(heights, reverse=True)
        to(page, "SK_2_2: what it chooses")
        page.keyboard.press("ArrowDown")
        sync_api.expect(page.locator(".line-of-unit .value").nth(1)).to_have_text("0 %")


def test_everything_that_is_operated_has_a_name(browser: Any, place: Place) -> None:
    with opened(browser, place, "#two=1&a.unit=0") as page:
        for image in page.locator("img[data-at=image]").all():  # the second pane is filled after the first
            sync_api.expect(image).not_to_have_attribute("alt", "")
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, select, input, svg[role=img], img')].filter(e => !(e.ariaLabel"
            " || e.alt || e.labels?.[0]?.textContent.trim() || e.textContent.trim() || e.hidden"
            " || e.querySelector('img[alt]')))"
            ".map(e => e.outerHTML.slice(0, 90))"
        )
        assert nameless == []
        label = page.locator(".bar").first.get_attribute("aria-label")
        assert re.match(r"SK_2_1: 3×3 \d+ %, 5×5 \d+ %", label)


def test_a_link_holds_the_state(browser: Any, place: Place) -> None:
    link = "#a.picture=r4&a.size=1.5&a.x=0.3&a.turn=-20&a.light=0.8&a.units=0:1,3:mean&a.unit=2&b.picture=r2&two=1"
    with opened(browser, place, link) as page:
        page.get_by_role("button", name="Copy link").click()
        sync_api.expect(page.locator(".notice").first).to_contain_text("link")
        assert page.evaluate("location.hash") == link
        assert picked(page).get_attribute("value") == "r4"
        assert page.locator(".slider.light output").first.inner_text() == "80 %"


@pytest.mark.exhaustive
def test_links_that_make_no_sense_open_the_page(browser: Any, place: Place) -> None:
    for odd in (
        "#a.picture=..%2Fx&a.size=99&a.units=77:0,0:9,x:mean&a.unit=-1&a.turn=NaN",
        "#%%%",
        "#a.size=",
        "#=&=&&",
    ):
        with opened(browser, place, odd) as page:
            assert page.locator(".notice.error").count() == 0


def test_files_that_are_no_pictures_get_a_notice_each(browser: Any, place: Place) -> None:
    with opened(browser, place) as page:
        before = picked(page).get_attribute("value")
        drop(page, {"empty.png": b"", "<img src=x>.jpg": b"not an image", "cut.png": png()[:300]})
        notices = page.locator(".notice.error p")
        sync_api.expect(notices).to_have_count(3)
        assert notices.nth(0).inner_text().startswith("empty.png: the image is empty (0 bytes)")
        assert notices.nth(1).inner_text().startswith("<img src=x>.jpg: not an image")
        assert picked(page).get_attribute("value") == before
        page.get_by_role("button", name="Close this notice").first.click()
        sync_api.expect(notices).to_have_count(2)


class Raising(nn.Module):
    """Raises on what is bright."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1:
            raise ArithmeticError("too bright")
        return self.head(x.mean(dim=(2, 3)))


def test_a_network_that_raises_and_a_server_that_ends_are_said_on_the_page(browser: Any) -> None:
    with served(digits_session(Raising().eval())) as place, opened(browser, place) as page:
        drop(page, {"white.png": png(level=255)})
        notice = page.locator(".notice.error p")
        sync_api.expect(notice).to_contain_text("the network raised ArithmeticError: too bright")
        assert page.locator(".units").first.is_hidden()  # it has none
        page.get_by_role("combobox", name="Picture").first.select_option("r2")
        sync_api.expect(page.locator(".stage img").first).to_have_attribute("alt", re.compile("digit scene 2 "))
        page.get_by_role("button", name="Close this notice").click()
        page.route("**/api/look", lambda route: route.abort())
        page.get_by_role("slider", name="Size").first.fill("2")
        sync_api.expect(notice).to_contain_text("The server does not answer")


@pytest.mark.exhaustive
def test_pictures_are_pasted_and_taken_by_the_camera(browser: Any, place: Place) -> None:
    count = "(() => { const devices = navigator.mediaDevices, asks = devices.getUserMedia.bind(devices);"
    count += "devices.getUserMedia = (what) => { window.asked = (window.asked ?? 0) + 1; return asks(what); } })()"
    with opened(browser, place) as page:
        page.evaluate(
            "bytes => { const made = new DataTransfer(); made.items.add(new File([Uint8Array.from(bytes)], 'p.png'));"
            "window.dispatchEvent(new ClipboardEvent('paste', {clipboardData: made})); }",
            list(png()),
        )
        sync_api.expect(picked(page)).to_have_text("p.png")
        page.evaluate(count)
        assert page.evaluate("window.asked ?? 0") == 0
        page.get_by_role("button", name="Camera").first.click()
        page.locator("#camera-video").evaluate(
            "v => new Promise(done => v.videoWidth ? done() : v.onloadeddata = done)"
        )
        page.get_by_role("button", name="Take the picture").click()
        sync_api.expect(picked(page)).to_have_text("camera")
        assert page.evaluate("window.asked") == 1
        sync_api.expect(page.locator("#camera-dialog")).to_be_hidden()


@pytest.mark.exhaustive
def test_more_files_than_are_taken_at_once(browser: Any, place: Place) -> None:
    with opened(browser, place) as page:
        drop(page, {f"{number}.png": png((20 + number, 30)) for number in range(45)})
        sync_api.expect(page.locator(".notice.note").last).to_contain_text("45 files: the first 40 are taken")
        listed = page.locator("[data-at=picture]").first.locator("optgroup").first.locator("option")
        sync_api.expect(listed).to_have_count(40, timeout=30_000)


def test_without_pictures_one_is_asked_for(browser: Any) -> None:
    session = digits_session()
    session.pictures.split, session.pictures.offered = None, ()
    with served(session) as place:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(place.address)
        sync_api.expect(page.get_by_text("Drop a picture").first).to_be_visible()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add…").first.click()
        chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": png()})
        sync_api.expect(picked(page)).to_have_text("mine.png")
        page.locator(".classes li").first.wait_for()
        sync_api.expect(page.get_by_text("Drop a picture").first).to_be_hidden()
        page.close()
