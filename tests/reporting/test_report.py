"""Test the report: its numbers against hand-computed ones, its behavior in a real browser without a network."""

import csv
import hashlib
import html
import io
import json
import re
import shutil
import sys
from base64 import b64decode, b64encode
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import PATH, Page
from PIL import Image
from report_runs import ABOUT, CONFUSION, HOSTILE, NAMES, make_run

from segnet_jax import report as command
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_flags
from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.reporting.page.charts import ticks
from segnet_jax.reporting.page.compare import comparison
from segnet_jax.reporting.page.recipe import overview
from segnet_jax.reporting.page.render import MAX_BYTES, report_html, write_report
from segnet_jax.reporting.page.run_summary import read_run_summary, select_steps
from segnet_jax.reporting.page.wording import duration_words, value_words
from segnet_jax.system.command import run_command

VOIDS = {"meta", "link", "img", "input", "br", "hr"}  # HTML elements without an end tag


class Reader(HTMLParser):
    """A parser of a page that uses Python's own: elements, table cells, and unbalanced tags."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.faults, self.elements, self.rows, self.text = [], [], [], [], []
        self.feed(page)
        self.close()
        self.faults += self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOIDS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def all(self, tag, **attributes):
        return [attrs for name, attrs in self.elements if name == tag and attributes.items() <= attrs.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "street <b>1")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text(encoding="utf-8")


def report(*flags):
    return command.report(parse_flags(command.ReportOptions, [str(flag) for flag in flags], prog="p", description=""))


# --- content ---


def test_the_page_is_well_formed_and_ids_are_unique(page):
    read = Reader(page)
    assert read.faults == []
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"] for attrs in read.all("a") if attrs["href"].startswith("#")} <= {f"#{name}" for name in ids}
    assert all(attrs.get("alt") for attrs in read.all("img"))
    assert all(attrs.get("scope") for attrs in read.all("th"))


def test_the_scores_of_the_classes_match_hand_worked_ones(page):
    rows = {row[0].strip(): row for row in Reader(page).rows if len(row) == 7}
    cells = {name: [cell.strip() for cell in row[1:]] for name, row in rows.items()}
    assert cells[HOSTILE.names[0]] == [
        "52.1 %",
        "",
        "68.5 %",
        "54.9 %",
        "90.9 %",
        "55 31.4 %",
    ]  # 50/96, 100/146, 50/91, 50/55
    assert cells['"><img src=x onerror=alert(1)>'][:1] == ["78.9 %"]  # 60/76
    assert cells["Straße 道路 {{ 7*7 }} lowest"] == [
        "24.4 %",
        "",
        "39.2 %",
        "90.9 %",
        "25.0 %",
        "40 22.9 %",
    ]  # 10/41, 20/51, 10/11
    assert cells["=1+1 absent"] == ["-", "", "-", "-", "-", "0 0.0 %"]
    assert "53.9 %" in page and "9 validation images" in page


def test_the_confusion_matrix_is_shown_in_percent_and_stored_as_counts(run, page):
    rows = [row[1:] for row in Reader(page).rows if len(row) == 6][1:]
    assert rows[0] == ["91", "9", "0", "0", "0"] and rows[2] == ["75", "0", "25", "0", "0"] and rows[3] == [""] * 5
    link = next(attrs for attrs in Reader(page).all("a") if "download" in attrs)
    table = b64decode(link["href"].partition("base64,")[2]).decode()
    assert table == (run / "confusion.csv").read_text()
    first, *others = csv.reader(io.StringIO(table))
    assert [[int(cell) for cell in row[1:]] for row in others] == CONFUSION.tolist()
    assert first[1] == HOSTILE.names[0] and first[4] == "'=1+1"  # not a formula in a spreadsheet
    assert "75.0 %</b> of Straße 道路 {{ 7*7 }} is predicted as" in page


def test_the_pictures_are_the_stored_ones_and_void_is_black(tmp_path):
    table = ClassTable(("a", "b"), ((10, 20, 30), (200, 100, 0)))
    folder = make_run(tmp_path / "run", classes=table, confusion=np.eye(2, dtype=int), seed=3)
    image = Reader(report_html(read_run_summary(folder))).all("img", alt=f"{NAMES[2]}: ground truth")[0]
    picture = np.array(Image.open(io.BytesIO(b64decode(image["src"].partition(",")[2]))).convert("RGB"))
    generator = np.random.default_rng(3)
    label = generator.integers(0, 3, (6, 24, 32), np.uint8)[2]  # as make_run draws them; 2 is void
    colors = np.array([*table.colors, (0, 0, 0)])
    assert np.array_equal(picture, colors[label]) and VOID == 255


def test_the_page_says_of_which_evaluation_the_worst_images_are(tmp_path):
    folder = make_run(tmp_path / "run", steps=(5, 10))
    path = folder / "evaluations" / "worst.json"
    for step, expected in (
        (5, "accuracy at the evaluation after step 5, the"),
        ("<b>", "accuracy at the evaluation, the"),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": step}))
        assert expected in report_html(read_run_summary(folder))


def test_names_from_the_run_folder_are_text_and_never_elements(page):
    read = Reader(page)
    assert len(read.all("script")) == 1 and not any("onerror" in attrs for _, attrs in read.elements)
    assert "<script>document.title='bad'</script>" in "".join(read.text)
    assert "{{ 7*7 }}" in page and ">49<" not in page
    assert html.escape("<b>Linux</b>") in page
    assert all(attrs["src"].startswith("data:image/") for attrs in read.all("img"))


def test_the_policy_allows_only_the_pages_own_style_and_script(page):
    policy = Reader(page).all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        inner = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in Reader(page).elements)
    assert not re.search(r"(src|href)=.?(https?:|//|file:)", page)


NOTES = {
    "camvid-tutorial": ("12 to 19 points less", {"dataset": "camvid-tutorial"}),
    "camvid-matlab": ("two video frames apart", {"dataset": "camvid-matlab", "split": "test"}),
    "synthetic": ("rendered scenes", {"dataset": "synthetic"}),
    "own": ("neighboring video frames", {"dataset": "street"}),
}


@pytest.mark.parametrize("name", NOTES)
def test_the_limits_of_the_scores_are_explained_for_each_kind_of_split(tmp_path, name):
    words, about = NOTES[name]
    size = len(CAMVID)
    matrix = np.eye(size, dtype=int)
    folder = make_run(tmp_path / "run", classes=CAMVID, confusion=matrix, about=ABOUT | about, steps=(5,))
    page = report_html(read_run_summary(folder))
    assert words in page and "selected on the same images" in page  # also without validation images


def test_a_failed_run_shows_the_reason_and_how_to_resume(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    (folder / "outcome.json").write_text(json.dumps({"exit_code": 6, "why": "step 16 was not <finite>"}))
    (folder / "incident").mkdir()
    (folder / "incident" / "step_0000016.json").write_text(json.dumps({"step": 16, "images": ["dark.png"]}))
    note = {"step": 10, "changes": {"learning_rate": {"old": 0.1, "new": 0.01}}}
    (folder / "overrides.json").write_text(json.dumps([note]))
    shown = "".join(Reader(report_html(read_run_summary(folder))).text)
    assert "failed at step 15 of 15" in shown and "exit code 6: step 16 was not <finite>" in shown
    assert "Step 16 was not finite on dark.png" in shown and "after step 10: learning_rate 0.1 -> 0.01" in shown
    assert f"python -m segnet_jax.train --run {folder} --resume" in shown


def test_settings_that_differ_from_the_protocol_are_listed(tmp_path):
    config = Config(protocol="demo", data="synthetic", scenes=(400, 48), image_size=(48, 64), shift=2, depth=3)
    config_rows = Reader(report_html(read_run_summary(make_run(tmp_path / "run", config=config)))).rows
    assert ["width", "0.25", "1"] in config_rows and not any(row[0] == "depth" for row in config_rows)


def test_a_page_has_at_most_eight_steps_including_the_first_the_last_and_the_chosen_one():
    assert select_steps(list(range(8)), 3) == list(range(8))
    kept = select_steps(list(range(0, 440, 10)), 290)
    assert len(kept) <= 8 and kept[0] == 0 and kept[-1] == 430 and 290 in kept


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (18, [0, 5, 10, 15]),
        (2, [0, 0.5, 1, 1.5, 2]),
        (436, [0, 100, 200, 300, 400]),
        (0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
    ],
)
def test_ticks_are_round_numbers(end, expected):
    assert ticks(end, 6) == pytest.approx(expected)


def test_a_page_with_incompressible_pictures_stays_under_5_mb(tmp_path):
    folder = make_run(tmp_path / "run", size=(512, 512), steps=(1, 2))
    write_report(folder)
    size = (folder / "report.html").stat().st_size
    assert 100_000 < size < MAX_BYTES <= 5_000_000


# --- damaged run folders ---


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "cut": _cut,
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a list": lambda path: path.write_text("[[1, 2], {}, null]"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "other kinds": lambda path: path.write_text(
        re.sub(r'": ("[^"]*"|[\d.]+)', '": [{"x": NaN}, -1e999]', path.read_text())
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=(2, 4), size=(4, 4))


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_a_file_is_missing_or_damaged_the_rest_is_drawn(small, tmp_path, damage):
    names = [path.relative_to(small) for path in small.rglob("*") if path.is_file() and "event" not in path.name[:6]]
    assert len(names) >= 8
    for number, name in enumerate(names):
        folder = shutil.copytree(small, tmp_path / str(number))
        DAMAGES[damage](folder / name)
        page = report_html(read_run_summary(folder))
        assert Reader(page).faults == [] and "SegNet report" in page, name
        assert (
            damage not in ("cut", "empty", "noise", "deep")
            or "In this folder" in page
            or name.suffix in (".jsonl", ".toml")
        ), name


def test_invalid_and_absurd_values_in_the_metrics_are_skipped(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "run")
    wild = ["NaN", "Infinity", "1e400", '"x"', "[1]", "true", "1" + "0" * 400, "1e308", "-5"]
    lines = [
        f'{{"kind": "train", "step": {i}, "epoch": {w}, "loss": {w}, "accuracy": {w}}}' for i, w in enumerate(wild, 1)
    ]
    lines += [f'{{"kind": "val", "step": {i}, "epoch": {w}, "miou": {w}, "iou": {w}}}' for i, w in enumerate(wild, 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "val", "step": 99999999999999999999999}', ""]))
    page = report_html(read_run_summary(folder))
    assert Reader(page).faults == [] and "nan" not in "".join(Reader(page).text).lower()


def test_large_json_files_are_truncated_or_skipped(small, tmp_path):
    folder = shutil.copytree(small, tmp_path / "run")
    (folder / "outcome.json").write_text(json.dumps({"exit_code": 1, "why": "why " * 1_000_000}))
    with open(folder / "result.json", "w") as file:
        file.truncate(65 * 2**20)
    page = report_html(read_run_summary(folder))
    assert len(page) < MAX_BYTES and "result.json was skipped: result.json has 68,157,440 bytes" in page


def test_a_run_without_evaluations_and_a_run_without_stored_ones_are_drawn(tmp_path):
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.toml").write_text(Config().to_toml())
    page = report_html(read_run_summary(young))
    assert "No evaluation yet" in page and "started, no finished step" in page and "--resume" in page
    old = make_run(tmp_path / "old", classes=CAMVID, confusion=np.eye(11, dtype=int))
    shutil.rmtree(old / "evaluations")
    per_class = {name: {"iou": 0.25 + i, "accuracy": 0.5, "pixels": 7} for i, name in enumerate(CAMVID.names)}
    (old / "result.json").write_text(json.dumps({"miou": 0.25, "per_class": per_class, "step": 15}))
    (old / "samples").mkdir()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(old / "samples" / "latest.png")
    read = Reader(report_html(read_run_summary(old)))
    assert ["Sky lowest", "25.0 %", "", "-", "-", "50.0 %", "7 9.1 %"] in [
        [cell.strip() for cell in row] for row in read.rows
    ]
    assert len(read.all("img")) == 1


# --- the command ---


def test_the_command_draws_one_run_and_writes_it_as_json(run, tmp_path, capsys):
    assert report(run, "--out", tmp_path / "page.html", "--json", tmp_path / "report.json") == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["confusion"] == CONFUSION.tolist() and content["miou"] == 0.5386 and content["step"] == 15
    assert content["per_class"]["=1+1"] == dict.fromkeys(("iou", "accuracy", "precision", "dice")) | {"pixels": 0}
    assert content["worst"][0] == {"name": NAMES[0], "accuracy": pytest.approx(0.1)}
    assert "wrote" in capsys.readouterr().out and Reader((tmp_path / "page.html").read_text()).faults == []


def test_several_runs_are_compared_and_their_differences_shown(run, tmp_path, capsys):
    about = ABOUT | {"fingerprints": {"train": "a", "val": "c"}}
    config = Config(data="street", epochs=3, learning_rate=0.5)
    other = make_run(tmp_path / "other", config=config, about=about, confusion=CONFUSION.T)
    out = tmp_path / "both.html"
    assert report(run, other, "--out", out, "--json", tmp_path / "both.json") == 0
    read = Reader(out.read_text())
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in read.rows}
    assert read.faults == [] and rows["learning rate"] == ["0.001", "0.5"] and len(read.all("script")) == 1
    assert rows["=1+1"] == ["-", "0.0 %"]  # the transpose has one pixel of this class, predicted as another one
    assert "The val images or labels differ" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "both.json").read_text())["runs"]) == 2
    assert ">best<" not in out.read_text()  # not of scores that are not comparable
    twin = make_run(tmp_path / "twin", confusion=CONFUSION.T)
    assert report(run, twin, "--out", out) == 0  # one of our pages is overwritten
    assert ">best<" in out.read_text()


def test_the_page_begins_with_date_duration_and_recipe_in_words(tmp_path):
    config = Config(data="street", init="/home/me/runs/old-1", learning_rate=0.02, schedule="poly", epochs=3)
    folder = make_run(tmp_path / "run", config=config)
    assert "started" not in dict(overview(read_run_summary(folder)))
    (folder / "train.log").write_text("2026-11-30 17:47:44 INFO    devices  1 x cpu\n")
    found = dict(overview(read_run_summary(folder)))
    assert found == {
        "started": "30 November 2026",
        "took": "15 s",
        "data": "street",
        "training images": "40",
        "recipe": "custom settings",
        "learning rate": "0.02, poly",
        "images per step": "4",
        "image size": "360x480",
        "length": "3 epochs, 15 steps",
        "initial weights": "old-1",
    }
    text = "".join(Reader(report_html(read_run_summary(folder))).text)
    assert all(value in text for value in found.values()) and "/home/me" not in text.split("Settings")[0][:2000]


@pytest.mark.parametrize(
    "value, name, words",
    [
        ('"none"', "init", "random weights"),
        ('"auto-present"', "class_weights", "median frequency, over images with the class"),
        ("[120, 160]", "image_size", "120x160"),
        ("[]", "map", "none"),
        ("true", "flip", "yes"),
        ("1000", "steps", "1,000"),
        ("0.0005", "weight_decay", "0.0005"),
        ('"<b>"', "freeze", "<b>"),
        ("-", "flip", "-"),
    ],
)
def test_values_are_shown_in_words(value, name, words):
    assert value_words(value, name) == words


@pytest.mark.parametrize("seconds, words", [(None, ""), (45.2, "45 s"), (1230, "20 min 30 s"), (7500, "2 h 5 min")])
def test_durations_are_shown_in_words(seconds, words):
    assert duration_words(seconds) == words


def test_a_comparison_shows_pictures_intervals_and_the_best_values(tmp_path):
    # Runs with the same samples, but different predictions, scores and intervals.
    runs = [make_run(tmp_path / name, steps=steps) for name, steps in (("a", (5, 10)), ("b", (5, 10, 15)))]
    for folder, miou in zip(runs, (0.4, 0.5), strict=True):
        result = json.loads((folder / "result.json").read_text()) | {"miou": miou}
        result["interval"] = {"miou": [miou - 0.05, miou + 0.05]}
        (folder / "result.json").write_text(json.dumps(result))
    out = tmp_path / "both.html"
    assert report(*runs, "--out", out) == 0
    page = out.read_text()
    read = Reader(page)
    rows = {row[0].strip(): [" ".join(cell.split()) for cell in row[1:]] for row in read.rows if len(row) == 3}
    assert read.faults == [] and rows["mean IoU"] == ["40.0 % 35.0 % to 45.0 %", "50.0 % best 45.0 % to 55.0 %"]
    summaries = [read_run_summary(folder) for folder in runs]
    pictures = comparison(summaries).pictures
    assert [each["name"] for each in pictures] == [each["name"] for each in summaries[0].samples] and len(pictures) == 6
    for index, each in enumerate(pictures):
        assert each["predictions"] == [run.chosen.predictions[index] for run in summaries]
        assert page.count(each["predictions"][1]) == 1
    assert len(read.all("img")) == 6 * 3 * 2  # an image below each truth and each prediction
    other = make_run(tmp_path / "c", seed=1)
    assert comparison([*summaries, read_run_summary(other)]).pictures == []  # of other samples


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "RUN is missing: run folders"),
        ([f"run-{number}" for number in range(13)], "takes 1 to 12 runs, got 13"),
        (["nowhere"], "no run nowhere: there is no such folder"),
        (["."], "no run in .: it contains no config.toml"),
        (["RUN", "RUN"], "the same run is given twice"),
        (["RUN", "--out", "RUN/config.toml"], "config.toml exists, is not a report"),
        (["RUN", "--out", "RUN/no/such/page.html"], "there is no folder"),
    ],
)
def test_errors_are_one_line(small, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["p", *(flag.replace("RUN", str(small)) for flag in flags)])
    with pytest.raises(SystemExit) as left:
        run_command(command.main)
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.count("\n") == 1


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(run, tmp_path_factory):
    if PATH is None:
        pytest.skip("no chromium is installed here")
    copied = tmp_path_factory.mktemp("page") / "report.html"
    shutil.copy(run / "report.html", copied)
    with Page(tmp_path_factory.mktemp("browser"), copied.as_uri()) as page:
        yield page


OPACITY = (
    "Array.from(document.querySelectorAll('.flip .{}:not([hidden])')).map(e => Number(getComputedStyle(e).opacity))"
)


def scrolled_to(browser, name):
    """Scroll to an element; return its left, top, width and height in the window."""
    find = f"const each = document.getElementById('{name}'), look = () => each.getBoundingClientRect();"
    bring = "each.scrollIntoView({block: 'center', behavior: 'instant'});"
    return browser.see(
        f"(() => {{ {find} {bring} return ['left', 'top', 'width', 'height'].map(name => look()[name]) }})()"
    )


def test_the_sliders_work_by_mouse_and_by_keyboard(browser):
    browser.look(1200, "light")
    left, top, width, height = scrolled_to(browser, "blend")
    overlaid = [pytest.approx(0.6)] * 6  # first, the predicted classes lie over the images
    assert browser.see(OPACITY.format("prediction")) == overlaid and browser.see(OPACITY.format("truth")) == [0] * 6
    browser.click(left + width - 4, top + height / 2)  # click at the right end: truth
    assert browser.see(OPACITY.format("truth")) == overlaid and browser.see(OPACITY.format("prediction")) == [0] * 6
    browser.press("ArrowLeft")  # a twentieth towards the prediction
    assert browser.see(OPACITY.format("truth")) == [pytest.approx(0.95 * 0.6)] * 6
    assert (
        browser.see("document.getElementById('blend').getAttribute('aria-valuetext')")
        == "prediction, 95 percent towards truth"
    )
    browser.press("Home")
    assert browser.see(OPACITY.format("truth")) == [0] * 6
    left, top, width, height = scrolled_to(browser, "colors")
    browser.click(left + 4, top + height / 2)  # no colors: the image alone
    assert browser.see(OPACITY.format("prediction")) == [0] * 6
    left, top, width, height = scrolled_to(browser, "step")
    browser.click(left + 4, top + height / 2)  # select the first step
    shown = "document.querySelector('.flip .prediction:not([hidden])').alt.split(' ').pop()"
    assert browser.see(shown) == "5" and browser.see("document.getElementById('step-label').textContent") == "step 5"
    browser.press("ArrowRight")
    assert browser.see(shown) == "10" and len(browser.see(OPACITY.format("prediction"))) == 6
    browser.see("document.querySelector('[data-range=colors][value=\"1\"]').focus()")
    browser.press("Enter")
    assert browser.see(OPACITY.format("prediction")) == [1] * 6


def test_what_is_wider_than_a_phone_fades_out_where_it_goes_on_and_says_so(browser):
    browser.look(240, "light")  # five short columns
    browser.see("new Promise(done => setTimeout(done, 300))")
    box = "document.querySelector('#confusion .scroll')"
    assert browser.see(f"{box}.scrollWidth > {box}.clientWidth")
    assert browser.see(f"{box}.className") == "scroll more-right"
    assert browser.see(f"getComputedStyle({box}.nextElementSibling).display") == "block"
    browser.see(f"{box}.scrollTo({{left: 10000, behavior: 'instant'}})")
    browser.see("new Promise(done => setTimeout(done, 300))")
    assert browser.see(f"{box}.className") == "scroll more-left"
    browser.look(1600, "light")
    browser.see("new Promise(done => setTimeout(done, 300))")
    fits = f"{box}.scrollWidth <= {box}.clientWidth"
    assert not browser.see(fits) or browser.see(f"{box}.className + {box}.nextElementSibling.hidden") == "scrolltrue"


def test_the_page_makes_no_requests_and_logs_no_errors(browser):
    browser.see("document.querySelector('button.copy').click()")
    browser.see("new Promise(done => setTimeout(done, 300))")
    assert browser.see("document.querySelector('button.copy').textContent") in ("Copied", "Selected")
    assert browser.errors == [] and len(browser.requests) == 1 and browser.requests[0].startswith("file:")
    assert browser.see("document.title") == "street <b>1 · SegNet report"
    assert browser.see("document.images.length") == browser.see(
        "Array.from(document.images).filter(each => each.complete && each.naturalWidth > 0).length"
    )


CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data); };
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const low = [];
  for (const e of document.querySelectorAll('main *, header *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const look = getComputedStyle(e);
    let paper = [0, 0, 0], left = 1;
    for (let up = e; up && left > 0; up = up.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(up).backgroundColor);
      [r, g, b].forEach((v, i) => paper[i] += left * a / 255 * v);
      left *= 1 - a / 255;
    }
    const ink = rgba(e instanceof SVGElement ? look.fill : look.color).slice(0, 3);
    const [x, y] = [light(ink), light(paper)];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (ratio < 4.5) low.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
  }
  return low;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_fits_the_window_and_all_text_has_enough_contrast(browser, width, scheme, tmp_path):
    browser.look(width, scheme)
    assert browser.see("document.documentElement.scrollWidth") <= width
    sizes = browser.see("[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert min(sizes) >= 10
    assert browser.see(CONTRAST) == []
    browser.picture(tmp_path / "page.png", whole=False)
    corner = Image.open(tmp_path / "page.png").convert("L").getpixel((2, 2))
    assert corner > 200 if scheme == "light" else corner < 60
