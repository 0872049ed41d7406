"""The page as a folder of files: the session's own answers, on any web host."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import ABSENT, CHROMIUM, files_at, launched
from PIL import Image

from explore.serving import digits_session
from selkern.cli import main
from selkern.errors import ResourceError, UsageError
from selkern.explore.session import Ask, Session
from selkern.explore.static import make_folder, sizes, static_names, write_static
from selkern.explore.view import View


@pytest.fixture(scope="module")
def session() -> Session:
    return digits_session()


@pytest.fixture(scope="module")
def folder(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "site" / "explorer"
    make_folder(folder)
    assert write_static(session, folder, static_names(session)[:1]) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of the folder on a web host, not at its root."""
    with files_at(folder.parent) as at:
        yield f"{at}explorer/"


def test_the_files_hold_what_the_session_answers(session: Session, folder: Path) -> None:
    facts = json.loads((folder / "data" / "session.json").read_text())
    assert [each["name"] for each in facts["pictures"]] == static_names(session)[:1]
    assert facts["sizes"] == sizes()
    assert len(sizes()) >= 25
    assert {0.5, 1.0, 3.0} <= set(sizes())
    assert json.loads((folder / "data" / "means.json").read_text())["done"]
    for name in static_names(session)[:1]:
        with Image.open(folder / "data" / name / "picture.png") as picture:
            assert picture.size == (48, 48)
        for size in (sizes()[0], 1.0, sizes()[-3]):
            kept = json.loads((folder / "data" / name / f"{size:.2f}.json").read_text())
            asks = [Ask(picture=name, view=View(size=size), unit=u, with_field=True) for u in range(6)]
            for u, answer in enumerate(map(session.look, asks)):
                assert {key: kept[key] for key in ("image", "top", "units")} == {
                    key: answer[key] for key in ("image", "top", "units")
                }
                assert kept["channels"][u][0] == pytest.approx(answer["channels"][0], abs=1e-3)
                assert kept["fields"][u]["radius"] == pytest.approx(answer["field"]["radius"], abs=1e-2)


def test_no_path_of_this_machine_is_in_the_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".html", ".js"):
            text = file.read_text(encoding="utf-8")
            assert str(Path(__file__).parents[2]) not in text
            assert str(Path.home()) + "/" not in text
    assert "Content-Security-Policy" in (folder / "index.html").read_text()
    assert "python -m http.server" in (folder / "index.html").read_text()


def test_a_folder_is_not_written_into(tmp_path: Path, session: Session) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        make_folder(tmp_path)
    with pytest.raises(UsageError, match="a file of this name"):
        make_folder(tmp_path / "file")
    with pytest.raises((ResourceError, UsageError)):
        make_folder(tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "mine"
    bare = digits_session(session.model)
    bare.pictures.split, bare.pictures.offered = None, ()
    with pytest.raises(UsageError, match="no pictures to show"):
        static_names(bare)


@pytest.mark.skipif(CHROMIUM is None, reason=ABSENT)
def test_the_page_works_without_a_server(address: str, session: Session) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with launched(sync_api) as browser:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address + "#a.size=1.51&a.x=0.2&a.units=0:1&a.unit=1")
        page.locator(".classes li").first.wait_for()
        name = static_names(session)[0]
        for size in (sizes()[16], sizes()[20]):
            page.get_by_role("slider", name="Size").first.fill(str(size))
            answer = session.look(Ask(picture=name, view=View(size=size)))
            sync_api.expect(page.locator(".stage img").first).to_have_attribute("src", answer["image"])
        sync_api.expect(page.locator(".hint").first).to_contain_text("SK_2_2: the pixels that move the centre")
        assert page.locator(".more figure").first.is_visible()
        for hidden in ("Add…", "Camera"):
            assert page.get_by_role("button", name=hidden).count() == 0
        assert page.get_by_role("combobox", name=re.compile("what (it|they) choose")).count() == 0
        page.get_by_role("button", name="Sweep sizes").first.click()
        sync_api.expect(page.get_by_role("button", name="Stop").first).to_be_visible()
        sync_api.expect(page.get_by_role("button", name="Sweep sizes").first).to_be_visible(timeout=20_000)
        line = page.locator(".curve .line path").first.get_attribute("d")
        assert len(re.findall("[ML]", line)) == len(sizes())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        assert said == []


@pytest.mark.exhaustive
def test_the_command_writes_the_user_s_pictures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(data, "PNG")
    (pictures / "teal <b>.png").write_bytes(data.getvalue())
    words = ["explore", "sknet_mini.digits", "--pictures", str(pictures), "--static", str(tmp_path / "site")]
    assert main([*words, "--threads", "1"]) == 0
    assert "1 picture at 26 sizes" in capsys.readouterr().out
    facts = json.loads((tmp_path / "site" / "data" / "session.json").read_text())
    assert [each["text"] for each in facts["added"]] == ["teal <b>.png"]
    assert facts["pictures"] == []
    (pictures / "teal <b>.png").write_bytes(b"no picture")
    assert main([*words[:-1], str(tmp_path / "other")]) == 3
    assert "teal <b>.png" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "other").exists()


def test_a_page_that_is_not_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("cannot write (No space left on device)", "here", "free space")

    monkeypatch.setattr("selkern.explore.static._write_json", full)
    words = [
        "explore",
        "sknet_mini.digits",
        "--data",
        "digits:train=20,val=20,test=20",
        "--static",
        str(tmp_path / "page"),
    ]
    assert main(words) == 5
    assert list((tmp_path / "page").iterdir()) == []
