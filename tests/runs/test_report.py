"""The page of a set: that it says what the set holds, loads nothing, and works in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import convnet
from PIL import Image

from sdsgsm_fast import SDSGSM, occlusion_map, runs
from sdsgsm_fast.data.images import ArraySet
from sdsgsm_fast.runs.kinds import ATTACK
from sdsgsm_fast.runs.report.charts import class_table, histogram
from sdsgsm_fast.runs.report.page import page_of
from sdsgsm_fast.runs.report.thumbnails import strips, views_of

COUNT = 130
HOSTILE = ("</script><script>document.title='run'</script>", "<img src=x onerror=alert(1)>", "c & \"d\" 'e'", "d")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return convnet(spread=3.0).eval()


@pytest.fixture(scope="module")
def data(net: Any) -> ArraySet:
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(COUNT, 3, 16, 16, generator=generator) * 255).to(torch.uint8)
    labels = net(pixels.float() / 255).argmax(1)
    labels[3] = (labels[3] + 1) % 4  # one that is skipped
    return ArraySet("arrays <b>", pixels.numpy(), labels.numpy(), classes=HOSTILE)


@pytest.fixture(scope="module")
def attacked(net: Any, data: ArraySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    attack = SDSGSM(net, eps=8 / 255, steps=6)
    runs.attack_dataset(attack, data, folder, shard_size=50, keep=("domain",))
    runs.write_report(folder, data=data)
    return folder


def content_of(page: Path) -> dict[str, Any]:
    """What the page's script takes."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_page_says_what_the_set_holds(attacked: Path, data: ArraySet) -> None:
    stored, content = runs.load(attacked), content_of(attacked / "report.html")
    columns = stored.columns
    assert content["views"] == ["clean", "domain", "perturbation", "adversarial"]
    assert content["columns"]["index"] == list(range(COUNT))
    assert content["columns"]["true"] == columns["labels"].tolist()
    assert content["columns"]["other"] == columns["reached"].tolist()
    torch.testing.assert_close(torch.tensor(content["columns"]["l2"]), columns["l2"], atol=6e-4, rtol=0)
    named = [content["results"][code] for code in content["columns"]["result"]]
    assert named == [
        "skipped" if skipped else "fooled" if fooled else "not fooled"
        for fooled, skipped in zip(columns["success"].tolist(), columns["skipped"].tolist(), strict=True)
    ]
    text = (attacked / "report.html").read_text(encoding="utf-8")
    summary = json.loads((attacked / "summary.json").read_text())
    assert f"<td>{summary['success_rate']:.1%}</td>" in text
    assert f"<td>{summary['l2']:.4g}</td>" in text
    assert len(content["strips"]) == COUNT
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["strips"][7]))).convert("RGB"), dtype=float)
    assert strip.shape == (16, 64, 3)
    for place, image in ((0, data.rows([7])[0][0]), (3, stored[7][0])):
        shown = strip[:, 16 * place : 16 * place + 16].mean((0, 1))
        assert np.abs(shown - image.numpy().mean((1, 2)) * 255).max() < 6


def test_a_page_loads_nothing_and_runs_nothing_of_the_set(attacked: Path) -> None:
    text = (attacked / "report.html").read_text(encoding="utf-8")
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(text)
    addresses = [value for _, attributes in tags for name in ("src", "href") if (value := attributes.get(name))]
    assert addresses == ["#gallery"]
    assert [tag for tag, _ in tags].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "http" not in text.replace("http-equiv", "")
    assert "arrays &lt;b&gt;" in text
    assert all(html.escape(name) in text for name in HOSTILE)
    assert not any(name in text for name in HOSTILE[:2])


def test_without_data_and_of_maps(net: Any, attacked: Path, data: ArraySet, tmp_path: Path) -> None:
    page = runs.write_report(attacked, tmp_path / "page.html", gallery=10)
    content = content_of(page)
    assert content["views"] == ["domain", "adversarial"]
    assert content["columns"]["index"] == [i * COUNT // 10 for i in range(10)]
    assert content["of"] == COUNT
    other = ArraySet("other", data.images[::-1].copy(), data.labels)
    with pytest.raises(ValueError, match="data: not the images of this set, arrays"):
        runs.write_report(attacked, data=other)
    with pytest.raises(ValueError, match="gallery: expected"):
        runs.write_report(attacked, gallery=0)
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        runs.write_report(tmp_path)

    runs.occlude_dataset(net, data, tmp_path / "maps", patch=4, limit=12)
    content = content_of(runs.write_report(tmp_path / "maps", data=data))
    assert content["views"] == ["clean", "map", "both"]
    assert content["other"] == "predicted class"
    images, labels = data.rows([0])
    peak = float(occlusion_map(net, images, labels, patch=4).max())
    assert content["columns"]["peak"][0] == pytest.approx(peak, abs=1e-4)


def test_figures_of_awkward_values() -> None:
    assert "no values" in histogram("x", torch.tensor([torch.nan]), 2)
    assert "no values" in histogram("x", torch.tensor([]), 2)
    one = histogram("x", torch.full((5,), 0.25), 2)
    assert one.count("<rect") == 1
    assert ": 5</title>" in one
    whole = histogram("updates", torch.tensor([0, 1, 1, 7]), 0)
    assert [int(n) for n in re.findall(r": (\d+)</title>", whole)] == [1, 2, 1]
    wide = histogram("x", torch.arange(1000), 0)
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", wide)) == 1000
    few = class_table(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), ["a", "b"], "reached")
    assert 'aria-label="2 of a as b: show them"' in few
    many = class_table(torch.arange(40), torch.arange(40).flip(0), [str(i) for i in range(40)], "reached")
    assert "The 30 most frequent pairs of 40" in many
    assert "no images" in class_table(torch.tensor([]), torch.tensor([]), ["a"], "reached")


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 200, 100), (48, 96)), ((2, 1, 20, 30), (30, 20)), ((1, 4, 7, 300), (96, 2))]
)
def test_thumbnails_keep_their_sides_apart(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    clean = torch.rand(shape)
    views = views_of(ATTACK, {"images": clean}, clean)
    assert [name for name, _ in views] == ["clean", "perturbation", "adversarial"]
    found = [Image.open(io.BytesIO(base64.b64decode(strip))) for strip in strips(views)]
    assert [image.size for image in found] == [(3 * size[0], size[1])] * shape[0]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, attacked: Path) -> Iterator[Any]:
    yield from opened(browser, attacked / "report.html")


def opened(browser: Any, path: Path, **settings: Any) -> Iterator[Any]:
    """A page that is not to log an error or to ask for anything."""
    page = browser.new_page(**settings)
    page.set_default_timeout(20000)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else troubles.append(request.url)
    )
    page.goto(path.as_uri())
    yield page
    assert not troubles
    page.close()


def numbers(page: Any, name: str) -> list[float]:
    """A number of the cards that are shown, in their order."""
    texts = page.locator(".card .numbers").all_text_contents()
    return [float(re.search(rf"{name} (-?[\d.]+)", text)[1]) for text in texts]  # type: ignore[index]


def test_sorting_filtering_and_pages(page: Any, attacked: Path) -> None:
    columns = runs.load(attacked).columns
    expect, status = pytest.importorskip("playwright.sync_api").expect, page.get_by_role("status")
    assert page.title() == "SDSGSM: Sequential on arrays <b>"
    assert status.text_content() == f"{COUNT} of {COUNT} images"
    assert page.locator(".card").count() == 60
    page.get_by_label("sorted by").select_option("ℓ2")
    found = numbers(page, "ℓ2")
    assert found == sorted(found)
    page.get_by_label("order", exact=True).select_option("largest first")
    found = numbers(page, "ℓ2")
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(float(columns["l2"].max()), abs=1e-3)
    page.get_by_role("button", name="Next page").click()
    page.get_by_role("button", name="Next page").click()
    assert page.locator(".card").count() == COUNT - 120
    assert page.get_by_role("button", name="Next page").is_disabled()

    page.get_by_label("result").select_option("skipped")
    assert status.text_content() == f"{int(columns['skipped'].sum())} of {COUNT} images"
    page.get_by_role("button", name="Reset").click()
    expect(status).to_have_text(f"{COUNT} of {COUNT} images")
    middle = float(columns["l2"].median())
    page.get_by_label("ℓ2 at most").fill(f"{middle:.3f}")
    shown = int(status.text_content().split()[0])
    assert abs(shown - int((columns["l2"] <= middle).sum())) <= 3, "rounded to three digits"
    assert max(numbers(page, "ℓ2")) <= round(middle, 3)
    page.get_by_label("SSIM at least").fill("2")
    assert status.text_content() == f"0 of {COUNT} images"


def test_a_pair_of_classes_filters(page: Any, attacked: Path) -> None:
    expect, columns = pytest.importorskip("playwright.sync_api").expect, runs.load(attacked).columns
    pair = page.locator(".pair").first
    expected, true, other = int(pair.text_content()), pair.get_attribute("data-true"), pair.get_attribute("data-other")
    tried = ~columns["skipped"] & (columns["labels"] == int(true)) & (columns["reached"] == int(other))
    assert int(tried.sum()) == expected
    pair.click()
    expect(page.locator(".card")).to_have_count(min(60, expected))
    assert page.get_by_label("true class").input_value() == true


def test_by_keyboard(page: Any) -> None:
    page.locator(".card").nth(2).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    assert "Image 2:" in dialog.get_by_role("heading").text_content()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "Image 4:" in dialog.get_by_role("heading").text_content()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.wait_for_function("document.activeElement.dataset.image === '3'")  # the event comes after the dialog is gone
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.dataset.image") == "2"


def test_what_a_screen_reader_finds(page: Any) -> None:
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("img", name=re.compile(r"^ℓ2: \d+ images from")).count() == 1
    card = page.locator(".card img").first
    assert re.match(r"image 0, .* → .*, (fooled|not fooled)", card.get_attribute("alt"))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length && !e.ariaLabel).length"
    )
    assert unnamed == 0
    levels = page.evaluate("[...document.querySelectorAll('main h1, h1, main h2')].map((e) => e.tagName)")
    assert levels[0] == "H1"
    assert set(levels[1:]) == {"H2"}
    assert page.locator(".card img").first.evaluate("(e) => e.complete && e.naturalWidth") == 64


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(scheme: str, browser: Any, attacked: Path) -> None:
    """WCAG's 4.5 for text."""
    script = """(selector) => {
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const shine = (colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const element = document.querySelector(selector);
      let behind = element;
      while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
      const [a, b] = [shine(getComputedStyle(element).color), shine(getComputedStyle(behind).backgroundColor)];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    for page in opened(browser, attacked / "report.html", color_scheme=scheme):
        for selector in ("h1", "caption", ".card .line", ".card .numbers", "select", ".aside"):
            assert page.evaluate(script, selector) > 4.5, selector
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert dark == (scheme == "dark")


def test_ten_thousand_images_stay_quick(browser: Any, attacked: Path, tmp_path: Path) -> None:
    content, count = content_of(attacked / "report.html"), 10_000
    generator = torch.Generator().manual_seed(0)
    for key, values in content["columns"].items():
        content["columns"][key] = [values[i % COUNT] for i in range(count)]
    content["columns"]["l2"] = torch.rand(count, generator=generator).tolist()
    # Strips as large as those of 32×32 pixels.
    longer = [base64.b64encode(base64.b64decode(s) + bytes(900)).decode() for s in content["strips"]]
    content["strips"] = [longer[i % COUNT] for i in range(count)]
    content["of"] = count
    path = tmp_path / "large.html"
    path.write_text(
        page_of(title="large", about=[], summary={}, figures=[], table="", gallery=content), encoding="utf-8"
    )
    begun = time.monotonic()
    for page in opened(browser, path):
        assert page.get_by_role("status").text_content() == f"{count} of {count} images"
        assert time.monotonic() - begun < 10
        taken = page.evaluate(
            """() => {
              const times = [], choice = document.getElementById('by-sorted-by');
              for (const key of ['l2', 'ssim', 'l2']) {
                choice.value = key;
                const start = performance.now();
                choice.dispatchEvent(new Event('input', {bubbles: true}));
                document.body.getBoundingClientRect();
                times.push(performance.now() - start);
              }
              return times;
            }"""
        )
        assert max(taken) < 1000, taken
        found = numbers(page, "ℓ2")
        assert found == sorted(found)
