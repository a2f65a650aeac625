"""Text from tables, configs and paths is text: in the report, on its page, in its figures and on the terminal."""

import html.parser
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from report_runs import row

from uqbench.cli import main
from uqbench.figures import canvas
from uqbench.metrics.bootstrap import RESAMPLES
from uqbench.report.render import terminal
from uqbench.report.render.markdown import Markdown, escape, heading, image, item, slug, table
from uqbench.report.render.page import page
from uqbench.runs.metrics_table import write_metrics
from uqbench.runs.run_dir import RunDir
from uqbench.runs.tables import metric_frame, render
from uqbench.text import printable

HOSTILE = [
    "[x](javascript:alert(1))",
    "![a](http://e/x.png)",
    "![a](figure.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><iframe src="//e"></iframe>',
    "<http://e.example> and <me@e.example>",
    "[r]: http://e.example 'title'",
    "[r][r] ![r] [r]",
    "a|b `c` *d* **e** __f__ ~~g~~ _h_ x_y_z",
    "`` ` `` ```",
    "\\ \\\\ \\| \\[x\\](http://e) \\`",
    "ends with \\",
    "&lt;b&gt; &amp; &#91;x&#93; &copy",
    "# one ## two #",
    "one\n\n## two\n\n<iframe src=//e></iframe>\n",
    "one  \ntwo\r\n---\n",
    "    code",
    "\tcode",
    "1. one",
    "12) one",
    "- one",
    "+ one",
    "* one",
    "> one",
    "---",
    "===",
    "| --- | --- |",
    "[TOC]",
    "{#id .c onclick=x}",
    ": one",
    "$x_{$ \\alpha$ $$",
    "one $ two",
    "_private",
    "a__b_ c _d_ e*f*g (_h_)",
    "\x1b[31mred\x1b[0m \x07\x08\x7f\x9b1m",
    "\u202egnp.exe \u2028 \u2066x\u2069",
    "\x02klzzwxh:0000\x03 \x0291\x03",
    "[red]x[/red] [/x] [bold",
    ":smile: -1.5",
]
TAGS = {"html", "head", "meta", "title", "style", "body", "header", "nav", "main", "div", "p", "br", "strong", "em"}
TAGS |= {"h1", "h2", "h3", "ul", "li", "a", "img", "table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"lang", "charset", "name", "content", "class", "id", "tabindex", "aria-label", "alt", "src", "href"}


class Page(html.parser.HTMLParser):
    """The text of a page, by element; fails where it holds anything that a report does not make."""

    def __init__(self, text, tags=TAGS):
        super().__init__()
        self.allowed = tags
        self.texts, self.alts, self.open, self.tags, self.ids, self.links = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag in self.allowed, tag
        self.tags.append(tag)
        for key, value in attributes:
            assert key in ATTRIBUTES, f"{tag} {key}"
            assert key != "href" or re.fullmatch(r"#[\w-]*", value), value
            assert key != "src" or value.startswith("data:image/png;base64,"), value
            if key in ("alt", "id", "href"):
                {"alt": self.alts, "id": self.ids, "href": self.links}[key].append(value)
        if tag not in ("img", "meta", "br", "hr"):
            self.open.append(tag)
            if tag not in ("strong", "em", "a"):
                self.texts.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def handle_comment(self, data):
        raise AssertionError(f"comment {data}")

    def handle_pi(self, data):
        raise AssertionError(f"processing instruction {data}")

    def handle_decl(self, decl):
        assert decl == "DOCTYPE html"


def shown(text):
    """What of a text a browser shows: spaces run together."""
    return " ".join(printable(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_it_is_wherever_it_stands(text):
    lines = [heading(2, text), "", f"Mean: {escape(text)}.", "", item(text), item(text), ""]
    lines += [image(text, "figure.png"), "", heading(3, f"x, {text}"), ""]
    lines += table(["metric", text], [[text, "1"], [Markdown("**2**"), text]])
    found = Page(page("\n".join(lines), {"figure.png": b"png"}, title="T"))
    texts = [" ".join(one.split()) for one in found.texts]
    assert found.alts == [printable(text).strip()]
    assert texts.count(shown(text)) == 1 + 1 + 2 + 3, "in the contents, a heading, two items, three cells"
    assert f"Mean: {shown(text)}." in texts and f"x, {shown(text)}" in texts
    assert "2" in texts and found.tags.count("strong") == 1
    assert [found.tags.count(tag) for tag in ("h2", "h3", "tr", "th", "td", "img", "a")] == [1, 1, 3, 2, 4, 1, 1]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_makes_nothing_of_markdown_that_was_not_escaped(text):
    made = page(f"## one\n\n{text}\n\n[r] [r][r] ![r]\n\n[r]: http://e.example\n", {"other.png": b""}, title="T")
    found = Page(made, TAGS | {"code", "pre", "hr", "ol", "blockquote"})
    assert found.tags.count("img") == 0 and found.tags.count("a") == found.tags.count("h2")


def test_numbers_and_ordinary_names_are_written_plainly():
    for text in (
        "ensemble (acquisition=adversarial, uq.members=3)",
        "rmd17, ethanol",
        "0.57 (0.55 … 0.59)",
        "Si–O, 300 K",
    ):
        assert escape(text) == text
    assert escape(Markdown("**a**")) == r"\*\*a\*\*", "what is escaped twice is seen"


def test_figures_of_different_names_have_different_files():
    assert slug("toy-t-test-net") == "toy-t-test-net" and slug("in domain") == "in-domain"
    names = ["α", "β", "<a>", "[a]", "a" * 400, "a" * 401, "\ud800"]
    assert len({slug(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,120}", slug(name)) for name in names)


@pytest.mark.parametrize("text", HOSTILE)
def test_figures_draw_names_literally(text):
    """Of what is drawn, no mathematics, no second line, and nothing is left out of a legend."""
    drawn = Figure().text(0, 0, canvas.plain(text))
    preprocessed, mathematics = drawn._preprocess_math(drawn.get_text())
    assert not mathematics and preprocessed.strip() == printable(text).strip()
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], label=canvas.plain(text))
    assert len(axes.get_legend_handles_labels()[1]) == 1
    canvas.png(canvas.draw(text, text, lambda axes: axes.set_xlabel(canvas.plain(text))))
    assert len(canvas.plain("x" * 5000)) <= 101


def test_what_steers_a_terminal_is_written_out():
    assert printable("a\x1b[1m\n\u202e\ud800 é–Å ⟨z²⟩") == "a\\x1b[1m\\n\\u202e\\ud800 é–Å ⟨z²⟩"
    assert printable("plain") == "plain" and printable(3) == "3"


LABELS = ("dataset", "subset", "backbone", "uq")


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_on_the_terminal_show_names_as_they_are(text):
    identity = dict.fromkeys(("run_id", "command", "split", *LABELS), text) | {"seed": 1, "generation": 1}
    rows = [
        identity | row("forces", "mae", 1.0, unit=text),
        identity | row(f"x{text}", f"m{text}", 1.0, population=text),
    ]
    frame = metric_frame(rows)
    out = render(frame.to_dict("records"), width=400) + terminal.table(frame)
    assert not set(re.findall(r"[^\n]", out)) - set(printable(out.replace("\n", "")))
    seen = " ".join(out.split())
    assert f"{shown(text)}, {shown(text)}, {shown(text)}, {shown(text)}, seed 1" in seen and shown(f"m{text}") in seen


def finished(path, command, config, labels, rows, *, split, generation=None, info=None, fates=None):
    with RunDir(path, OmegaConf.create({"command": command, **config}), command) as run:
        run.update(labels=labels, data_sha256="d", scored_sha256=split, **(info or {}))
        samples = [one | {"values": one["value"] + 0.01 * np.arange(9)} for one in rows if one["target"] == "forces"]
        run.write_parquet(RESAMPLES, pd.DataFrame(samples)[["target", "population", "metric", "values"]])
        if fates is not None:
            run.write_csv("md_replicas.csv", fates)
        write_metrics(run, rows, command=command, split=split, labels=labels, generation=generation)
        run.finish()


def hostile_runs(root, text):
    """Trainings, evaluations and active learning whose every label is hostile, and some that are damaged."""
    names = {label: f"{text}{label}" for label in LABELS}
    file = re.sub(r"[/\0]", "∕", text)[:100]
    forces = {"mae": "eV/Å", "spearman": "1", "cnll": "1", f"coverage_{text}": "1", f"calibrated_{text}": f"{text}unit"}
    forces |= {"miscalibration_area": "1"}
    fates = pd.DataFrame({"temperature": [300.0, 300.0], "time_ps": [1.0, 0.5], "exploded": [False, True]})
    for seed in (0, 1):
        for k, uq in enumerate(("a", "b")):
            labels = names | {"uq": f"{text}{uq}", "seed": seed}
            shared = {"seed": seed, "uq": {"name": uq}, "training": {"lr": f"{text}{k}", f"odd{k}": 1}}
            info = {"choices": {"uq": text, "backbone": text}, "family": f"{text}family"}
            rows = [row("forces", name, 1.0 + 0.1 * seed + k, unit=unit) for name, unit in forces.items()]
            rows += [row(f"{text}target", f"{text}metric", 1.0, population=f"{text}population", unit=f"{text}unit")]
            rows += [
                row("cost", name, 1.0 + k, population="run", unit="s") for name in ("training_time", "inference_time")
            ]
            rows += [
                row("structure", f"rdf_difference_{text}", 0.1, population=f"temperature={text}", unit=f"{text}unit")
            ]
            place = root / "train" / f"{file}{uq}{seed}"
            finished(place, "train", shared, labels, rows, split="test", info=info)
            far = shared | {"split": f"{text}far", "run": str(place)}
            finished(root / "evaluate" / f"{uq}{seed}", "evaluate", far, labels, rows[:3], split=f"{text}far")
            for acquisition in ("adversarial", text):
                learn = root / "al" / f"{uq}{seed}{acquisition == text}"
                choices = {"acquisition": acquisition, "oracle": text}
                config = {"seed": seed, "acquisition": {"name": acquisition}, "uq": {"name": uq}}
                found = [
                    row("forces", "mae", 1.0 + k),
                    row("md", "survival", 0.5, population=f"temperature={text}", n=2),
                ]
                finished(learn, "al", config, labels, [one | {"generation": 1} for one in found], split="hot" + file)
                finished(
                    learn / f"generation_1_hot{file}",
                    "evaluate",
                    {"seed": seed},
                    labels,
                    found,
                    split="hot",
                    fates=fates,
                )
                info = json.loads((learn / "run.json").read_text())
                (learn / "run.json").write_text(json.dumps(info | {"choices": choices}))
    for number, change in enumerate(({"status": text}, {"schema": text}, {"labels": text})):
        place = root / "train" / f"{file}{number}"
        finished(place, "train", {"seed": 9}, names | {"seed": 9}, [row("forces", "mae", 1.0)], split="test")
        info = json.loads((place / "run.json").read_text())
        (place / "run.json").write_text(json.dumps(info | change))
    place = root / "train" / f"{file}3"
    finished(place, "train", {"seed": 9}, names | {"seed": 9}, [row("forces", "mae", 1.0)], split="test")
    (place / "metrics.csv").write_text(f"{text}\n{text}\n")
    os.rename(place, os.fsencode(place) + b"\xff")


FULL = [
    "".join(HOSTILE[::2]) + "[x](javascript:alert(1))",
    "".join(HOSTILE[1::2]) + "![a](http://e/x.png)",
    "$x_{$" + 500 * "y",
]


@pytest.mark.parametrize("text", FULL, ids=range(len(FULL)))
def test_a_report_of_hostile_labels_comes_to_its_end_and_shows_them(tmp_path, capsys, text):
    hostile_runs(tmp_path / "runs", text)
    assert main(["report", f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'out'}", "against=a"]) == 0
    said = capsys.readouterr().out
    assert printable(said.replace("\n", "")) == said.replace("\n", "") and "left out: " in said
    found = Page((tmp_path / "out" / "report.html").read_text())
    everything = " ".join(" ".join(found.texts).split())
    for label in ("dataset", "subset", "backbone", "a", "b", "far", "unit"):
        assert shown(f"{text}{label}") in everything, label
    for part in ("Left out", "Missing", "Claims of the study", "Ranks in domain", "Quality against cost", "structure"):
        assert part in everything, part
    assert "Active learning: " in everything and list((tmp_path / "out").glob("survival_*.png"))
    assert len(found.alts) == len(list((tmp_path / "out").glob("*.png"))) > 3
    assert found.links and {link.removeprefix("#") for link in found.links} <= set(found.ids), "the contents lead there"
    for line in (tmp_path / "out" / "report.md").read_text().splitlines():
        assert not re.search(r"(?<!\\)\]\((?!\w[\w.-]*\.png\))", line), line
    rows = pd.read_csv(tmp_path / "out" / "metrics.csv", keep_default_na=False)
    assert set(rows["dataset"]) == {f"{text}dataset"}, "tables keep what was in tables"
