"""The page in a real browser.

LINEAVAE_REQUIRE_BROWSER=1 makes it a failure that there is none.
"""

import io
import os
import shutil

import pytest
from made_up import ELBOS, FORECASTS, NUM_ROWS
from PIL import Image

from lineavae import report

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = "no browser: apt-get install chromium-headless-shell"
        if os.environ.get("LINEAVAE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(paths, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.to_html(report.read(paths)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser, file):
    """The page, newly opened; that it asked for nothing and said nothing is checked when the test is over."""
    page = browser.new_page()
    requests, messages = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(file)
    yield page
    page.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [file]


def widths(page):
    """The width of what the page holds, and that of the window."""
    return page.evaluate("[document.scrollingElement.scrollWidth, window.innerWidth]")


def labels(table):
    return table.locator("tbody th").all_inner_texts()


def click(table, column):
    """Sort by a column, counted from 0, and give the labels of the rows and what the header says."""
    header = table.locator("thead th").nth(column)
    header.get_by_role("button").click()
    return labels(table), header.get_attribute("aria-sort")


def test_every_image_is_loaded_and_no_script_of_others_runs(page):
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 4
    assert min(widths) > 1000
    assert page.title() == "Published and measured"
    assert page.locator("script").count() == 1


def sorted_rows(values, rows, sign):
    """Numbers in order, equal ones in the order of ``rows``, gaps last."""
    return sorted(rows, key=lambda row: (values[row] is None, sign * (values[row] or 0)))


def test_tables_sort_by_number_stably_and_with_gaps_last(page):
    table = page.locator("table", has_text="Deep VAEs.")
    names = [f"fixed σ² = {index}" for index in range(NUM_ROWS)]
    elbos, forecasts = (dict(zip(names, values, strict=True)) for values in (ELBOS, FORECASTS))
    assert labels(table) == names
    by_elbo = sorted_rows(elbos, names, 1)
    assert click(table, 1) == (by_elbo, "ascending")
    assert click(table, 7) == (sorted_rows(forecasts, by_elbo, 1), "ascending")
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "none"
    descending = sorted_rows(forecasts, sorted_rows(forecasts, by_elbo, 1), -1)
    assert click(table, 7) == (descending, "descending")
    assert click(table, 7) == (names, "none")


def test_labels_sort_by_the_numbers_in_them(page):
    table = page.locator("table", has_text="Deep VAEs.")
    click(table, 1)
    assert click(table, 0) == ([f"fixed σ² = {index}" for index in range(NUM_ROWS)], "ascending")


def test_infinity_is_the_largest_and_nan_is_last(page):
    table = page.locator("table", has_text="By critical ε")
    rows, order = click(table, 1)
    assert (rows, order) == (["1", "2", "3", "4", "5", "0"], "ascending")
    assert click(table, 1)[0] == ["5", "4", "3", "2", "1", "0"]


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    box = page.locator(".skip").bounding_box()
    assert box["x"] >= 0
    button = page.locator("table", has_text="Deep VAEs.").get_by_role("button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("[aria-sort=ascending]").count() == 1
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_phone_scrolls_wide_tables_in_their_own_boxes(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert widths(page) == [360, 360]
    box = page.locator(".scroll", has_text="Deep VAEs.")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    scrolled = "box => box.scrollLeft || new Promise(done => box.onscroll = () => done(box.scrollLeft))"
    assert box.evaluate(scrolled) > 0


def test_an_edge_with_more_behind_it_is_shaded(page):
    page.set_viewport_size({"width": 360, "height": 740})
    box = page.locator(".scroll", has_text="Deep VAEs.")
    box.evaluate("box => box.firstElementChild.style.visibility = 'hidden'")

    def colours():
        return Image.open(io.BytesIO(box.screenshot())).convert("RGB").getcolors(1 << 20)

    assert len(colours()) > 10
    box.evaluate("box => box.scrollLeft = box.scrollWidth")
    assert [colour for _, colour in colours()] == [(255, 255, 255)]


def test_print_cuts_nothing(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 within its margins
    assert widths(page) == [688, 688]
    overflow = "boxes => boxes.map(box => getComputedStyle(box).overflow)"
    assert set(page.locator(".scroll").evaluate_all(overflow)) == {"visible"}


@pytest.mark.parametrize(
    ("media", "options"),
    [
        ({"color_scheme": "light"}, {}),  # names, roles, headings, tables, and contrast: 4.5 or more
        ({"color_scheme": "dark"}, {"runOnly": ["color-contrast"]}),
        ({"media": "print"}, {"runOnly": ["color-contrast"]}),
    ],
    ids=["light", "dark", "print"],
)
def test_axe_finds_nothing(page, media, options):
    page.emulate_media(**media)
    results = axe.Axe().run(page, options=options).response
    found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in results["violations"]}
    assert found == {}
    assert "color-contrast" in {rule["id"] for rule in results["passes"]}
    nodes = [node for rule in results["incomplete"] for node in rule["nodes"]]
    # single signs, ✓ and ∞, are no text to it
    assert all("only non-text characters" in node["any"][0]["message"] for node in nodes)
