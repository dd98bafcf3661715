"""The page at /ui, used in a headless browser as a person would."""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kind_bundles import interval_of, save_numbers, save_several_labels, several_scores, values_of
from live_server import LiveServer, live_server, save_served_bundle, until
from prefix_proxy import prefix_proxy

from serve.contract.decision import Decision
from serve.contract.drift import Distribution
from serve.contract.long_texts import LongTexts

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, server: LiveServer) -> Iterator[Any]:
    """Return the page; it must have no errors and load nothing from other addresses."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    troubles: list[str] = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda sent: None if sent.url.startswith(server.url) else troubles.append(sent.url))
    opened.goto(server.url + "/ui")
    playwright.expect(opened.locator("#name")).to_have_text("tiny")
    yield opened
    assert not [each for each in troubles if not each.startswith("data:")]
    context.close()


def classify(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#seen:not([hidden])")
    playwright.expect(page.locator("#submit")).to_be_enabled()


def test_type_classify_read_the_bars(page: Any, server: LiveServer) -> None:
    classify(page, "w1 good w2")
    expected = server.post("/predict", {"inputs": "w1 good w2"}).json()
    assert page.text_content("#answer") == "positive"
    assert page.eval_on_selector_all("#bars .name", "all => all.map(each => each.textContent)") == [
        each["label"] for each in expected
    ]
    shown = page.eval_on_selector_all("#bars .value", "all => all.map(each => parseFloat(each.textContent))")
    assert shown == pytest.approx([100 * each["score"] for each in expected], abs=0.06)
    widths = page.eval_on_selector_all(
        "#bars .fill", "all => all.map(each => each.offsetWidth / each.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([each["score"] for each in expected], abs=0.02)
    assert "ms in the model" not in page.text_content("#error")
    assert "in the model" in page.text_content("#timing")


def test_the_word_that_matters_is_marked(page: Any) -> None:
    classify(page, "w1 good 😀 w2")
    assert page.eval_on_selector_all(".word.for", "all => all.map(each => each.textContent)") == ["good"]
    assert page.text_content("#words") == "w1 good 😀 w2"
    assert "“good”" in page.text_content("#words-hint")


def test_the_windows_of_a_long_text_are_marked_where_they_begin(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = save_served_bundle(tmp_path_factory.mktemp("bundles") / "long", long_texts=LongTexts(strategy="windows"))
    with live_server(bundle) as live:
        page = browser.new_page()
        page.goto(live.url + "/ui")
        classify(page, "good " * 14 + "w1 " * 14)
        marks = page.eval_on_selector_all(".passage", "all => all.map(each => parseFloat(each.textContent))")
        assert len(marks) == 2
        assert marks[0] > marks[1]  # of the label that is explained
        assert page.text_content("#tokens-hint").endswith("shows what each says on its own.")
        assert page.locator("#tokens .dropped").count() == 0
        page.close()


def test_tokens_that_were_dropped_are_crossed_out(page: Any) -> None:
    classify(page, " ".join(f"w{number}" for number in range(20)))
    assert page.eval_on_selector_all("#tokens .dropped", "all => all.map(each => each.textContent)") == [
        f"w{number}" for number in range(14, 20)
    ]
    assert "6 dropped" in page.text_content("#tokens-hint")


def test_markup_is_shown_as_text(page: Any) -> None:
    text = "<img src=x onerror=alert(1)> <b>good</b> <script>alert(2)</script>"
    classify(page, text)
    assert page.text_content("#words") == text
    assert page.query_selector("#words img, #words b, #words script, #tokens img") is None


def test_the_page_fits_its_window_and_can_be_used_by_keyboard(page: Any) -> None:
    classify(page, "w1 " * 30 + "w" * 300)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.focus("#text")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "submit"
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#submit")).to_be_enabled()


def test_errors_are_shown(browser: Any, tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "one"), api_keys=("right",)) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        playwright.expect(opened.locator("#error")).to_contain_text("Bearer")
        opened.fill("#key", "right")
        opened.press("#key", "Tab")
        playwright.expect(opened.locator("#name")).to_have_text("tiny")
        opened.fill("#text", "good")
        opened.click("#submit")
        opened.wait_for_selector("#seen:not([hidden])")
        assert opened.text_content("#answer") == "positive"
        opened.close()


def test_pairs_get_two_fields(browser: Any, tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "pairs", text_pair_column="hypothesis")) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        opened.wait_for_selector("#pair:not([hidden])")
        opened.fill("#text", "w1 good")
        opened.fill("#text-pair", "w2")
        opened.click("#submit")
        opened.wait_for_selector("#seen:not([hidden])")
        assert opened.text_content("#words") == "w1 good\nw2"
        opened.close()


def test_several_labels_have_bars_with_their_thresholds(browser: Any, tmp_path: Path) -> None:
    bundle = save_several_labels(tmp_path / "several")
    (scores,) = several_scores(bundle, ["bad"])
    with live_server(bundle) as live:
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.goto(live.url + "/ui")
        playwright.expect(opened.locator("#kind")).to_have_text("Labels")
        classify(opened, "bad")
        assert opened.text_content("#answer") == "anger"
        shown = opened.eval_on_selector_all("#bars .value", "all => all.map(each => each.textContent)")
        assert shown == [f"{100 * score:.1f} %" + " ✓" * int(score > 0.6) for score in sorted(scores, reverse=True)]
        marks = opened.eval_on_selector_all(".threshold", "all => all.map(each => parseFloat(each.style.left))")
        assert marks == pytest.approx([60, 50, 55]), "of anger, fear, joy"
        assert opened.input_value("#explained") == "anger"
        opened.select_option("#explained", "joy")
        playwright.expect(opened.locator("#words-hint")).to_contain_text("the score of joy changes")
        classify(opened, "w5")
        assert opened.text_content("#answer") == "No label reaches its threshold"
        assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        opened.close()


def test_numbers_are_shown_with_their_interval(browser: Any, tmp_path: Path) -> None:
    bundle = save_numbers(tmp_path / "numbers")
    (value,) = values_of(bundle, ["w1 bad"])
    with live_server(bundle) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        playwright.expect(opened.locator("#kind")).to_have_text("price (90 % interval)")
        classify(opened, "w1 bad")
        shown = [float(number) for number in re.findall(r"-?[\d.]+", opened.text_content("#answer"))]
        assert shown == pytest.approx([value, *interval_of(value)], rel=1e-4)
        assert opened.query_selector("#bars li") is None
        assert opened.is_hidden("#explained")
        assert "the number changes: “bad” +" in opened.text_content("#words-hint")
        opened.close()


def answers_of(page: Any) -> list[list[str]]:
    page.wait_for_selector("#download:not([hidden])")
    return page.eval_on_selector_all(
        "#answers tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def drop(page: Any, name: str, content: str) -> None:
    page.evaluate(
        """([name, content]) => {
            const files = new DataTransfer();
            files.items.add(new File([content], name));
            document.getElementById("many").dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
        }""",
        [name, content],
    )


def test_many_lines_become_a_table(page: Any, server: LiveServer) -> None:
    texts = [f"w{number} good" if number % 2 else f"w{number} bad" for number in range(40)]  # two requests
    page.fill("#lines", "\n\n".join(texts))
    page.click("#classify-all")
    head, *rows = answers_of(page)
    assert head == ["text", "answer", "score"]
    expected = server.post("/v1/classify", {"inputs": texts}).json()["results"]
    assert [row[:2] for row in rows] == [[text, result["label"]] for text, result in zip(texts, expected, strict=True)]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_dropped_csv_is_answered_row_by_row(page: Any) -> None:
    drop(page, "rows.csv", '\ufeffid,text\r\n1,"w1, ""good"" good"\r\n2,"bad\nw2"\r\n')
    _, *rows = answers_of(page)
    assert [row[:2] for row in rows] == [['w1, "good" good', "positive"], ["bad\nw2", "negative"]]
    with page.expect_download() as download:
        page.click("#download")
    written = download.value.path().read_bytes().decode()
    assert written.startswith('\ufefftext,answer,score,error\r\n"w1, ""good"" good",positive,0.')
    drop(page, "rows.csv", "id,body\n1,good\n")
    playwright.expect(page.locator("#progress")).to_have_text("rows.csv: no column text; found id, body")
    for content, problem in {
        "id,text\n1,a, b\n": "rows.csv, row 2: 3 cells, but 2 in the header; put quotes around texts with a comma",
        'id,text\n1,"a" b\n': "row 2: a quote is not closed, or text follows a closing quote",
    }.items():
        drop(page, "rows.csv", content)
        playwright.expect(page.locator("#progress")).to_have_text(problem)


def downloaded(page: Any, text: str) -> list[dict[str, str]]:
    page.fill("#lines", text)
    page.click("#classify-all")
    answers_of(page)
    with page.expect_download() as download:
        page.click("#download")
    return list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"), newline="")))


def test_the_download_says_which_answers_are_withheld(browser: Any, tmp_path: Path) -> None:
    decision = Decision(abstain="score<0.6", abstain_below=0.6)
    with live_server(save_served_bundle(tmp_path / "one", decision=decision)) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        rows = downloaded(opened, "good\nw1 w2")
        assert [row["abstained"] for row in rows] == ["false", "true"]
        opened.close()


def test_labels_with_a_comma_read_back(browser: Any, tmp_path: Path) -> None:
    folder = save_several_labels(tmp_path / "one", labels=("joy, or love", "fear", "hope"))
    with live_server(folder) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        (row,) = downloaded(opened, "w1 good")
        (expected,) = live.post("/v1/classify", {"inputs": ["w1 good"]}).json()["results"]
        assert json.loads(row["answer"]) == expected["labels"]
        assert len(expected["labels"]) > 1
        opened.close()


def test_a_text_is_no_formula_for_a_spreadsheet(page: Any) -> None:
    page.fill("#lines", "=1+1 good")
    page.click("#classify-all")
    answers_of(page)
    with page.expect_download() as download:
        page.click("#download")
    assert "\r\n'=1+1 good,positive,0." in download.value.path().read_bytes().decode()


def test_requests_fit_the_limits_of_the_server_and_answers_are_not_lost(browser: Any, tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "one"), max_inputs=5, max_text_chars=20) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        playwright.expect(opened.locator("#name")).to_have_text("tiny")
        opened.fill("#lines", "\n".join(["good"] * 12 + ["bad " * 20]))
        opened.click("#classify-all")
        assert len(answers_of(opened)) == 1 + 12
        playwright.expect(opened.locator("#progress")).to_contain_text("Ended after 12 of 13: input 0: 80 characters")
        opened.close()


def test_pairs_are_dropped_as_two_columns_or_typed_with_a_tab(browser: Any, tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "pairs", text_pair_column="hypothesis")) as live:
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        opened.wait_for_selector("#pair:not([hidden])")
        drop(opened, "rows.tsv", "hypothesis\ttext\nw2\tgood\n")
        assert answers_of(opened)[1][:3] == ["good", "w2", "positive"]
        opened.fill("#lines", "good\tw2\nbad")
        opened.click("#classify-all")
        playwright.expect(opened.locator("#progress")).to_have_text("line 2: write both texts, with a tab between them")
        opened.close()


def test_an_overloaded_server_is_asked_again(browser: Any, server: LiveServer) -> None:
    page = browser.new_page()
    page.goto(server.url + "/ui")
    refused = []

    def refuse_once(route: Any) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(True)
            route.fulfill(status=429, headers={"retry-after": "1"}, json={"error": {"message": "overloaded"}})

    page.route("**/v1/classify", refuse_once)
    page.fill("#lines", "good")
    page.click("#classify-all")
    assert answers_of(page)[1][1] == "positive"
    assert refused
    page.close()


def test_examples_drift_and_the_card_are_shown(browser: Any, tmp_path: Path) -> None:
    reference = {"label": Distribution(edges=(1, 2), counts=(5, 5, 90))}
    bundle = save_served_bundle(tmp_path / "one", reference=reference, examples=(("w1 good",), ("bad",)), card="# Tiny")
    with live_server(bundle) as live:
        live.post("/v1/classify", {"inputs": ["bad"] * 100})
        until(lambda: live.get("/v1/model").json()["drift"])
        opened = browser.new_page()
        opened.goto(live.url + "/ui")
        opened.click("#examples button:last-child")
        opened.wait_for_selector("#seen:not([hidden])")
        assert opened.text_content("#answer") == "negative"
        assert "unlike the rows of the export" in opened.text_content("#model")
        opened.click("#card-box summary")
        playwright.expect(opened.locator("#card")).to_have_text("# Tiny")
        opened.close()


def test_of_several_models_each_has_a_page_of_its_own(browser: Any, tmp_path: Path) -> None:
    bundles = {name: save_served_bundle(tmp_path / name, labels=("no", "so so", name)) for name in ("one", "other")}
    with (
        live_server(bundles, root_path="/shown") as live,
        prefix_proxy(live.url, "/shown", strips=True) as url,
    ):
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.goto(f"{url}/ui")
        for name in ("one", "other"):
            opened.select_option("#models", name)
            playwright.expect(opened.locator("#name")).to_have_text(name)
            assert opened.url == f"{url}/models/{name}/ui"
            classify(opened, "good")
            assert opened.text_content("#answer") == name
        assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        opened.go_back()
        playwright.expect(opened.locator("#name")).to_have_text("one")
        opened.close()
