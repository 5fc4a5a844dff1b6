"""The page of a sweep: whole, self-contained, and the numbers of its table."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from dist_diffusion.evaluation.sweep_figures import others, tooltip, trade_off
from dist_diffusion.evaluation.sweep_page import Facts, Strip, page
from dist_diffusion.evaluation.sweep_table import Row, in_markdown

VOID = {"meta", "img"}


def row(mode: str, cfg: float | None = None, classifier: float | None = None, fd: float = 100, score: float = 5) -> Row:
    network = 40.0 if mode == "cfg" else 20.0
    return Row(mode, cfg, classifier, fd, 0.5, score + 0.5, 0.6, 0.7, 0.8, score, network, 0.0, 3.21, 9.87)


ROWS = [row("none"), row("cfg", 1.5, fd=90, score=6), row("cfg", 3, fd=120, score=7), row("classifier", None, 2)]
ROWS.append(row("both", 2, 0.5, fd=110, score=8))
FACTS = Facts(
    "FD-lite0@2k",
    [("model", "<script>alert('runs & \"co\"')</script>")],
    ["biased & <b>so</b>"],
    ["<i>cat</i>", "dog"],
    ("cfg", "classifier"),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16, 3), dtype=np.uint8)
STRIPS = [Strip(images, [1, 0, 2]) for images in IMAGES]


class Reader(HTMLParser):
    """Every element opened and closed in order; attributes and texts kept."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, other, value in self.attributes if other == name]


def test_the_page_is_whole_and_refers_to_nothing_outside() -> None:
    content = page(FACTS, ROWS, STRIPS)
    reader = Reader(content)
    assert not {"script", "link", "iframe"} & {tag for tag, _, _ in reader.attributes}
    assert not reader.values("href")
    assert all(source.startswith("data:image/png;base64,") for source in reader.values("src"))
    assert not re.search(r"url\(|@import", content)
    # The namespace is a name, not an address that is read.
    assert set(re.findall(r"\w+://[^\"<\s]+", content)) == {"http://www.w3.org/2000/svg"}
    assert page(FACTS, ROWS, STRIPS) == content


def test_every_text_is_escaped() -> None:
    content = page(FACTS, ROWS, STRIPS)
    assert "<script" not in content and "<i>" not in content and "<b>" not in content
    texts = Reader(content).texts
    assert FACTS.lines[0][1] in texts and FACTS.warnings[0] in texts and FACTS.classes[0] in texts


def test_each_mode_shows_its_points_below_the_one_without_guidance() -> None:
    reader = Reader(page(FACTS, ROWS, STRIPS))
    assert reader.values("alt") == [
        *("no guidance", "cfg 1.5", "cfg 3"),
        *("no guidance", "classifier 2"),
        *("no guidance", "both 2 + 0.5"),
    ]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source[22:])))) for source in reader.values("src")]
    for image, number in zip(shown, (0, 1, 2, 0, 3, 0, 4), strict=True):
        assert np.array_equal(image, np.concatenate(list(IMAGES[number]), axis=1))
    # Labels 1, 0 and 2, of which two have names.
    head = reader.texts.index("dog")
    assert reader.texts[head : head + 3] == ["dog", "<i>cat</i>", "2"]


def test_large_images_are_reduced_and_none_are_needed() -> None:
    large = Strip(np.full((2, 256, 256, 3), 9, dtype=np.uint8), None)
    (source,) = Reader(page(FACTS, ROWS[:1], [large])).values("src")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(source[22:]))))
    assert image.shape == (128, 256, 3) and (image == 9).all()
    assert "data:" not in page(FACTS, ROWS, [])


def test_the_table_has_every_point_and_marks_the_lowest_distance() -> None:
    content = page(FACTS, ROWS, [])
    lines = re.findall(r"<tr( class=\"best\")?>(<td>.*)</tr>", content)
    cells = [re.findall("<td>(.*?)</td>", line) for _, line in lines]
    assert [line[:4] for line in cells] == [
        ["none", "-", "-", "100.0"],
        ["cfg", "1.5", "-", "90.0"],
        ["cfg", "3", "-", "120.0"],
        ["classifier", "-", "2", "100.0"],
        ["both", "2", "0.5", "110.0"],
    ]
    assert [bool(best) for best, _ in lines] == [False, True, False, False, False]
    assert cells[1][4:] == ["0.5000", "6.50", "0.600", "0.700", "0.800", "6.00", "40", "0", "3.2", "9.9"]
    printed = in_markdown("FD-lite0@2k", ROWS).splitlines()
    assert printed[0].count("FD-lite0@2k") == 1 and "FID" not in printed[0]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in printed[2:]] == cells


def test_without_a_judge_there_is_no_agreement() -> None:
    assert "label agreement 0.800, judge's score 6.00" in tooltip("FD", ROWS[1])
    rows = [Row(**{**r.__dict__, "label_agreement": None, "judge_score": None}) for r in ROWS]
    for words in ("label agreement", "judge"):
        assert words in page(FACTS, ROWS, []) and words not in page(FACTS, rows, [])
    assert "label_agreement" not in rows[0].as_dict() and ROWS[0].as_dict()["label_agreement"] == 0.8


def test_curves_begin_without_guidance_where_that_is_a_scale_of_theirs() -> None:
    curves = trade_off("FD", ROWS, ("cfg", "classifier")).curves
    marks = {curve.name: [(mark.x, mark.y, mark.label) for mark in curve.marks] for curve in curves}
    assert marks == {
        "classifier-free guidance": [(5, 100, ""), (6, 90, "1.5"), (7, 120, "3")],
        "classifier guidance": [(5, 100, ""), (5, 100, "2")],
        "both (cfg + classifier)": [(8, 110, "2 + 0.5")],
    }
    assert [len(curve.marks) for curve in trade_off("FD", ROWS, ()).curves] == [2, 1, 1]
    assert [mark.label for mark in trade_off("FD", ROWS, ()).ringed] == ["no guidance"]


def test_scales_below_the_neutral_one_come_before_it() -> None:
    rows = [row("none", fd=7), row("cfg", 2, fd=9), row("cfg", 0, fd=8)]
    (curve,) = trade_off("FD", rows, ("cfg",)).curves
    assert [mark.y for mark in curve.marks] == [8, 7, 9]


def test_numbers_by_scale_are_of_the_modes_that_have_one() -> None:
    plots = others("FD", [*reversed(ROWS)], ("cfg",))
    assert [plot.title for plot in plots] == [
        *("FD by scale", "judge's score by scale", "score by scale", "label agreement by scale"),
        "precision against recall, by guidance scale",
    ]
    assert [[(m.x, m.y) for m in curve.marks] for curve in plots[0].curves] == [[(1.5, 90), (3, 120)], [(2, 100)]]
    assert plots[1].levels == [(5, "no guidance")]
    assert len(others("FD", [ROWS[0], ROWS[4]], ())) == 1
