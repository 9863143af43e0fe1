import io
import math
import re
import subprocess
import sys
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import small_config
from tests.run_samples import (
    IMPROVING,
    close_gate,
    make_checkpoint,
    make_evaluation,
    make_member,
    make_run,
    open_picture,
)
from thaw.dump import scan_dump
from thaw.ensemble import Member
from thaw.errors import UnlikeSplits
from thaw.records import Backbone, Epoch, History, Quarantined, Verdict
from thaw.release import release_run
from thaw.report import render_html, render_markdown, write_report
from thaw.split import split_manifest


def read_text(html):
    """What a reader sees: the page without its style and tags."""
    body = re.sub(r"<[^>]+>", " ", html.partition("<body>")[2])
    return " ".join(body.replace("&#39;", "'").replace("\u00a0", " ").split())


def read_pictures(markdown):
    """The pictures in the Markdown by name: their kind, PNG or JPEG, and size in pixels."""
    found = re.findall(r"!\[(\w+)\]\(data:image/(\w+);base64,([^)]+)\)", markdown)
    return {name: (kind.upper(), open_picture(b64decode(data), kind.upper())) for name, kind, data in found}


def make_noise(side_pixels):
    """A PNG that no encoder makes much smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (side_pixels, side_pixels, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def run():
    return make_run()


def test_importing_the_report_and_its_pictures_loads_neither_matplotlib_nor_keras():
    code = "import sys, thaw.report.pictures; print({'matplotlib', 'keras', 'tensorflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_report_is_one_small_file_that_needs_nothing_else(run, tmp_path):
    path = write_report(tmp_path, run)
    assert path == tmp_path / "report.html"
    assert list(tmp_path.iterdir()) == [path]
    html = path.read_text(encoding="utf-8")
    assert len(html) < 1_000_000
    assert "<script" not in html
    assert not re.search(r"https?://|url\(|@import|<link", html)
    assert set(re.findall(r'(?:src|href)="(.{5})', html)) == {"data:"} | {
        f"#{name[:4]}" for name in re.findall(r'<section id="(\w+)"', html)
    }


def test_the_report_shows_every_picture(run):
    html = render_html(run)
    shown = re.findall(
        r'<section id="(\w+)">(?:(?!</section>).)*?src="data:image/png;base64,iVBOR', html, re.S
    )
    assert shown == ["curves", "evaluation", "mistakes", "views"]


def test_the_first_sentence_says_how_often_the_model_was_right(run):
    said = "Fine-tuned: 97.8 % of 1,000 test images right (96.7–98.5 %), head alone 96.9 %."
    assert said in read_text(render_html(run))
    assert said in render_markdown(run).replace("\u00a0", " ")


def test_a_fine_tune_that_made_it_worse_says_so():
    worse = make_run(evaluation=make_evaluation("fine_tuned", wrong=40))
    assert "less than the head alone 96.9 %" in read_text(render_html(worse))


def test_fine_tuning_is_compared_with_the_head_image_by_image(run):
    assert "mended 9 of the head's mistakes and made no new ones" in read_text(render_html(run))
    worse = make_run(evaluation=make_evaluation("fine_tuned", wrong=32))
    assert "mended none of the head's mistakes and made 1 new one." in read_text(render_html(worse))


def test_evaluations_of_different_splits_are_not_reported_side_by_side():
    with pytest.raises(UnlikeSplits, match="aaaa"):
        make_run(head_evaluation=make_evaluation("head", wrong=31, split="aaaa"))


def test_a_closed_gate_says_why():
    text = read_text(render_html(close_gate()))
    assert f"Gate closed: {IMPROVING.reason}." in text
    assert "test images right" not in text
    assert "Gate closed: in the last 5 epochs" in render_markdown(close_gate())


def test_a_run_that_nothing_was_tested_in_has_a_report():
    run = close_gate(head_evaluation=None, pictures={}, stages=())
    assert "Most confident mistakes" not in read_text(render_html(run))
    assert "## Gate" in render_markdown(run)


def test_an_overridden_gate_is_said_first():
    run = make_run(members=(make_member(verdict=replace(IMPROVING, overridden=True)),))
    for text in (read_text(render_html(run)), render_markdown(run).replace("\\", "")):
        assert "Gate overridden: fine-tuned from an unconverged head" in text.split("Split")[0]
        assert "overridden by override_gate: true. Its verdict was improving" in text.split("Split")[0]


def test_a_head_whose_loss_was_never_finite_has_a_report():
    broken = Epoch(loss=math.nan, accuracy=0.5, val_loss=math.nan, val_accuracy=0.5, learning_rate=1e-3)
    history = History(validation_counts=(4, 4), epochs=(broken,))
    reason = "the loss is not finite in epoch 1"
    verdict = Verdict(state="diverged", statistic=None, threshold=None, epoch=1, reason=reason)
    run = close_gate(members=(Member(seed=0, head=make_checkpoint("head", history), verdict=verdict),))
    assert "Gate closed: the loss is not finite in epoch 1." in read_text(render_html(run))


def test_quarantined_images_are_listed_with_their_reasons():
    bad = Quarantined(path="train/dog.7.jpg", label="dog", reason="cut short: 812 of 20,113 bytes")
    html = render_html(make_run(quarantined=(bad,)))
    assert "train/dog.7.jpg dog cut short: 812 of 20,113 bytes" in read_text(html)
    assert "<details><summary>" not in html


def test_a_long_quarantine_list_is_folded_and_cut():
    bad = [Quarantined(path=f"{'x' * 4000}/{n}.jpg", label=None, reason="empty " * 900) for n in range(5000)]
    html = render_html(make_run(quarantined=tuple(bad)))
    assert "<summary>All 5,000 quarantined images and why</summary>" in html
    assert "and 4,800 more, in the manifest" in html
    assert len(html) < 1_000_000


def test_names_from_the_dump_can_not_inject_anything():
    hostile = "<script>alert(1)</script>"
    bad = Quarantined(path=f"{hostile}.jpg", label=hostile, reason=f'"{hostile}" | `x`')
    run = make_run(classes=(hostile, "a|b"), quarantined=(bad,), title=hostile)
    html, markdown = render_html(run), render_markdown(run)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in markdown
    assert "a\\|b" in markdown


def test_names_that_are_not_unicode_can_be_written(tmp_path):
    run = make_run(classes=("cat", "caf\udce9"), pictures={})
    assert b"caf\\udce9" in write_report(tmp_path, run).read_bytes()
    assert b"udce9" in render_markdown(run).encode("utf-8")


def test_the_split_table_counts_every_class_on_every_side(run):
    text = read_text(render_html(run))
    assert "cat 9 4 4 1 dog 9 4 4 1 all 18 8 8 2" in text
    assert "| cat | 9 | 4 | 4 | 1 |" in render_markdown(run)


def test_the_gate_shows_statistic_threshold_and_settings(run):
    text, markdown = (
        read_text(render_html(run)),
        render_markdown(run).replace("\u00a0", " ").replace("\\", ""),
    )
    assert "statistic 0.0011 nats threshold 0.0020 nats settings patience_epochs 8, min" in text
    assert (
        "| statistic | 0.0011 nats |\n| threshold | 0.0020 nats |\n| settings | patience_epochs 8, "
        in markdown
    )


def test_mistakes_are_listed_from_the_most_confident_one(run):
    text = read_text(render_html(run))
    assert "22 of 1,000 test images were called wrongly. The 12 most confident:" in text
    assert "test/0.jpg cat dog 0.9990 test/1.jpg cat dog 0.9990" in text
    assert "test/12.jpg" not in text


def test_a_head_released_by_itself_says_so_where_it_was_still_improving():
    improving = replace(make_run().verdict, state="improving", reason="val loss improved by 0.1 nats")
    run = make_run(members=(make_member(verdict=improving, phase_verdicts=()),), evaluation=None)
    text = read_text(render_html(run))
    assert "Backbone kept frozen" in text
    assert "The head was released improving: val loss improved by 0.1 nats" in text
    assert "Gate closed" not in text


def test_the_small_backbone_is_never_taken_for_imagenet():
    mini = Backbone(
        name="vgg16-mini",
        origin="drawings",
        weights="mini.h5",
        weights_sha256="cd" * 32,
        preprocessing="unit",
        layers=(),
        cuts=(),
        stages=(),
    )
    run = make_run(backbone=mini)
    for text in (read_text(render_html(run)), render_markdown(run)):
        assert "vgg16-mini, pretrained on drawings; not ImageNet" in text


def test_provenance_names_what_the_run_can_be_repeated_from(run):
    text = read_text(render_html(run))
    for fact in (
        "ab" * 32,
        make_run().manifest.digest,
        "bfloat16",
        "keras 3.15.1",
        "seeds split 0",
        "recipe: book2-finetune",
    ):
        assert fact in text


def test_cost_says_which_stages_were_cached(run):
    text = read_text(render_html(run))
    assert "scan dump 3.2 s cached cache features 2 min 11 s made" in text
    assert "all 14 min 42 s" in text


def test_markdown_shows_every_picture_and_what_is_too_large_as_jpeg_of_the_same_size(run):
    markdown = render_markdown(run)
    assert len(markdown.encode()) < 300_000
    pictures = read_pictures(markdown)
    assert {name: kind for name, (kind, _) in pictures.items()} == {
        "curves": "PNG",
        "confusion": "PNG",
        "reliability": "PNG",
        "mistakes": "JPEG",
        "views": "JPEG",
    }
    assert {name: size for name, (_, size) in pictures.items()} == {
        name: open_picture(picture) for name, picture in run.pictures.items()
    }
    assert "report.html" not in markdown.replace("(The full configuration: see report.html.)", "")


def test_markdown_says_where_a_picture_is_that_would_make_it_too_long(run):
    markdown = render_markdown(replace(run, pictures={**run.pictures, "confusion": make_noise(1200)}))
    assert len(markdown.encode()) < 300_000
    assert set(read_pictures(markdown)) == {"curves", "reliability", "mistakes", "views"}
    assert "(The picture confusion: see report.html.)" in markdown


def test_markdown_says_everything_else_that_the_page_says(run):
    html, markdown = render_html(run), render_markdown(run)
    titles = re.findall(r"<h2>(.+?)</h2>", html)
    assert re.findall(r"^## (.+)$", markdown, re.M) == titles
    rows = re.findall(r'<tr><th scope="row">(.+?)</th>', html)
    assert len(rows) > 40
    assert [row for row in rows if f"| {row} |" not in markdown] == []


def test_markdown_of_a_dump_of_many_classes_says_where_its_long_tables_are():
    classes = tuple(f"class {n}" for n in range(250))
    bad = tuple(Quarantined(path=f"{n}.jpg", label=None, reason="empty") for n in range(20))
    markdown = render_markdown(make_run(classes=classes, quarantined=bad, pictures={}))
    assert len(markdown) < 30_000
    assert "(The table of 252 rows: see report.html.)" in markdown  # of the data, with a row of no class
    assert "(The table of 251 rows: see report.html.)" in markdown  # of the split
    assert "(All 250 classes: see report.html.)" in markdown
    assert "(All 20 quarantined images and why: see report.html.)" in markdown


def test_a_published_run_is_found_again_as_long_as_its_reports_are_there(drawn_dump, store):
    config = small_config(drawn_dump)
    manifest = scan_dump(config.dump, store).value
    split = split_manifest(manifest, config.split)
    run = close_gate(config=config, manifest=manifest, split=split, pictures={})
    first = release_run(run, store)
    folder = store.folder("runs", first.value.run)
    names = {"report.html", "report.md", "outcome.json", "curves.png", "gate.png", "views.png"}
    names |= {"published.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert len(read_pictures((folder / "report.md").read_text(encoding="utf-8"))) == 3
    (folder / "views.png").unlink()
    again = release_run(run, store)
    assert (first.reused, again.reused) == (False, True)
    assert again.value == first.value
    (folder / "report.md").unlink()
    assert not release_run(run, store).reused
    assert {file.name for file in folder.iterdir()} == names
