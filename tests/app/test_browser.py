"""The page in headless Chromium, by clicking: search, play, more like this, locate, captions, hostile names."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.app.served import HOSTILE, Served, add_recording

selenium = pytest.importorskip("selenium", reason="the tests of the page need selenium")
pytest.importorskip("gradio", reason="the page needs Gradio")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required --window-size=1200,1400"
)


_CAPTION_PICTURE = "document.querySelector('#captions .sound img')"


class Browser:
    """A browser at the page."""

    def __init__(self, driver: Any, shots: Path) -> None:
        self.driver = driver
        self._shots = shots

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 60).until(lambda _: condition())

    def one(self, selector: str) -> Any:
        return self.until(lambda: next((found for found in self.all(selector) if found.is_displayed()), None))

    def text(self, selector: str) -> str:
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector)

    def type(self, selector: str, text: str) -> None:
        field = self.one(f"{selector} textarea, {selector} input")
        field.clear()
        field.send_keys(text)

    def tab(self, name: str) -> None:
        self.one(f"button[role=tab]:nth-of-type({('Search', 'Long recording', 'Captions').index(name) + 1})").click()

    def choose_recording(self, part: str) -> None:
        self.one('input[aria-label="Recording of the library"]').click()
        self.until(lambda: [option for option in self.all("[role=option]") if part in option.text])[0].click()

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self._shots / f"{name}.png"))


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("SLAP_FAST_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(page: Served, shots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        driver.get(page.address)
        yield Browser(driver, shots)
        # The last word on all tests of this file: whatever was clicked, nothing was asked of another machine.
        asked = [
            message["params"]["request"]["url"]
            for entry in driver.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
        ]
        elsewhere = [
            url for url in asked if not url.startswith((page.address, "data:", "blob:", "chrome:", "chrome-untrusted:"))
        ]
        assert not elsewhere
        assert driver.execute_script("return window.hacked") is None
    finally:
        driver.quit()


def search(browser: Browser, text: str) -> None:
    browser.type("#query", text)
    browser.one("#search").click()
    browser.until(lambda: f"“{text}”" in browser.text("#results .note"))


def test_words_find_moments_that_play_from_their_start(browser: Browser) -> None:
    search(browser, "a dog barks")
    cards = browser.all("#results .moment")
    assert [card.find_element(By.CSS_SELECTOR, ".rank").text for card in cards] == [str(n) for n in range(1, 11)]
    browser.until(lambda: browser.driver.execute_script("return document.querySelector('.sound img').naturalWidth > 0"))
    browser.shot("search")
    play = "const audio = document.querySelector('.sound audio'); audio.muted = true; audio.play(); "
    browser.driver.execute_script(play)
    browser.until(
        lambda: browser.driver.execute_script("return document.querySelector('.sound audio').currentTime > 0")
    )
    length, source = browser.driver.execute_script(
        "const audio = document.querySelector('.sound audio'); return [audio.duration, audio.src]"
    )
    span = parse_qs(urlsplit(source).query)
    assert length == pytest.approx(float(span["end"][0]) - float(span["start"][0]))


def test_a_name_that_is_html_is_shown_as_text_and_not_run(browser: Browser) -> None:
    search(browser, "<img src=x onerror=window.hacked=1> {{7}} ${7*7}")
    names = [name.text for name in browser.all("#results .name")]
    assert HOSTILE in [name.rpartition("studio/")[2] for name in names]
    assert browser.driver.execute_script("return window.hacked") is None


def test_more_like_this_searches_by_the_moment_and_leaves_it_out(browser: Browser) -> None:
    search(browser, "a dog barks")
    first = browser.all("#results .name")[0].text
    # A browser shows the old picture in an element that is used again, until the new picture is there.
    browser.driver.execute_script("document.querySelectorAll('#results img').forEach((image) => { image.old = true })")
    browser.all("#results .similar")[0].click()
    browser.until(lambda: " of " in browser.text("#results .note") and "barks" not in browser.text("#results .note"))
    assert browser.all("#results .moment img")
    assert not browser.driver.execute_script(
        "return [...document.querySelectorAll('#results img')].some((image) => image.old)"
    )
    assert first.rpartition("/")[2] in browser.text("#results .note") or "long" in first


def test_a_folder_and_a_duration_narrow_the_results(browser: Browser) -> None:
    browser.one("button.label-wrap").click()
    browser.one('input[aria-label="In folder"]').click()
    browser.until(lambda: [o for o in browser.all("[role=option]") if o.text == "sounds/field"])[0].click()
    search(browser, "rain")
    assert len(browser.all("#results .moment")) == 4
    browser.type("#shortest", "100")
    browser.one("#search").click()
    browser.until(lambda: "Nothing found" in browser.text("#results .note"))
    browser.shot("nothing")
    browser.driver.refresh()


def test_locate_shows_the_recording_and_its_files(browser: Browser) -> None:
    browser.one("#search")
    browser.tab("Long recording")
    browser.one("#locate")
    browser.type("#locate-query", "a dog barks")
    part = next(
        field for field in browser.all("textarea, input") if field.get_attribute("placeholder") == "all recordings"
    )
    browser.until(lambda: re.search(r"^\d\d recordings$", browser.text("body"), re.M))
    part.send_keys("long")  # the list follows as one types
    browser.until(lambda: re.search(r"^1 recording$", browser.text("body"), re.M))
    browser.choose_recording("long.wav")
    browser.one("#locate").click()
    browser.until(lambda: "long.wav (0:45)" in browser.text("#located .note"))
    table = browser.driver.execute_async_script(
        "const link = document.querySelector('#located .files a').href, done = arguments[0];"
        "fetch(link).then((answer) => answer.text()).then(done)"
    )
    assert table.startswith("recording,query,start,end,")
    browser.until(
        lambda: browser.driver.execute_script("return document.querySelector('.overview img').naturalWidth > 0")
    )
    browser.shot("locate")


def test_captions_describe_a_recording(browser: Browser) -> None:
    browser.tab("Captions")
    browser.one("#caption").click()
    browser.until(lambda: "hoose a recording" in browser.text("#captions"))
    browser.choose_recording("take.flac")
    browser.one("#caption").click()
    browser.until(lambda: browser.all("#captions .caption"))
    browser.until(lambda: browser.driver.execute_script(f"return {_CAPTION_PICTURE}.naturalWidth > 0"))
    browser.shot("captions")


def test_a_recording_that_vanished_is_a_sentence_and_a_new_one_appears(browser: Browser, folder: Path) -> None:
    field = folder / "sounds" / "field"
    (field / "clip 3.wav").rename(field / "moved.wav")
    add_recording(folder / "library", field / "moved.wav")
    browser.tab("Search")
    search(browser, "a bell")
    browser.one("#more").click()
    browser.until(lambda: len(browser.all("#results .moment")) > 10)
    names = [name.text for name in browser.all("#results .name")]
    assert any("moved.wav" in name for name in names)
    browser.driver.execute_script("document.querySelectorAll('#results img').forEach(i => i.loading = 'eager')")
    browser.until(lambda: "cannot be read any more" in browser.text("#results .picture.failed"))


def test_the_page_fits_a_phone(browser: Browser) -> None:
    browser.tab("Search")
    browser.driver.set_window_size(390, 844)
    search(browser, "a dog barks")
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.driver.execute_script("return window.innerWidth")
    shown = "const image = document.querySelector('.sound img'); return image.naturalWidth && image.currentSrc"
    assert browser.until(lambda: browser.driver.execute_script(shown)).endswith("narrow=1")  # has larger letters
    browser.shot("phone")
