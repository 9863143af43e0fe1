"""Evaluation and labels in pieces by many: to the bit what one worker makes of all rows."""

from pathlib import Path

import pytest

from tests.drift_samples import draw_images, save_head
from tests.prepared import Prepared, head_of
from thaw.batch import LabelRequest, begin_labels, label_images, label_portion, label_request
from thaw.errors import BadDump, NotPublished
from thaw.evaluate import EvaluationRequest, begin_evaluation, evaluate, evaluate_request, score_portion
from thaw.pieces import fetch_pieces, plan_pieces, publish_piece
from thaw.portions import PortionSize
from thaw.store import Store


def at_most(images: int) -> PortionSize:
    return PortionSize(images=images, megabytes=1)


def test_pieces_are_as_large_as_each_other_and_end_where_batches_do(store: Store):
    bounds = [
        (one.start, one.end) for one in plan_pieces("x", rows=1000, size=at_most(300), batch=64, store=store)
    ]
    assert bounds == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert plan_pieces("x", rows=300, size=at_most(300), batch=64, store=store) == ()


def test_what_was_made_before_is_not_planned_again(store: Store):
    first, second = plan_pieces("x", rows=128, size=at_most(64), batch=64, store=store)
    with publish_piece("x", first, store) as folder:
        (folder / "made").touch()
    assert plan_pieces("x", rows=128, size=at_most(64), batch=64, store=store) == (second,)


def test_who_goes_on_with_pieces_of_another_size_makes_what_lies_between_them(store: Store):
    begun = plan_pieces("x", rows=640, size=at_most(128), batch=64, store=store)
    for portion in (begun[1], begun[3]):
        with publish_piece("x", portion, store):
            pass
    rest = plan_pieces("x", rows=640, size=at_most(64), batch=64, store=store)
    assert [(one.start, one.end) for one in rest] == [
        (0, 64),
        (64, 128),
        (256, 320),
        (320, 384),
        (512, 576),
        (576, 640),
    ]
    # One of those who worked on the first plan was not to be stopped.
    for portion in (*rest, begun[2]):
        with publish_piece("x", portion, store):
            pass
    names = [folder.name.split("-") for folder in fetch_pieces("x", 640, store)]
    assert [int(start) for start, _ in names] == [0, *(int(end) for _, end in names[:-1])]
    assert int(names[-1][1]) == 640


def test_pieces_that_leave_out_rows_are_not_put_together(store: Store):
    first, second, third = plan_pieces("x", rows=192, size=at_most(64), batch=64, store=store)
    for portion in (first, third):
        with publish_piece("x", portion, store):
            pass
    assert fetch_pieces("x", 192, store) == []
    with publish_piece("x", second, store):
        pass
    assert len(fetch_pieces("x", 192, store)) == 3


@pytest.fixture
def request_of(prepared: Prepared, tmp_path: Path):
    """An evaluation of 120 rows: those trained on, the most that there are."""
    return EvaluationRequest(
        checkpoint=head_of(prepared, epochs=2).value, test=prepared.bottlenecks.train, temperature=2.0
    )


def test_an_evaluation_in_pieces_is_to_the_bit_that_of_one_worker(prepared: Prepared, request_of):
    store = prepared.store
    plan = begin_evaluation(request_of, at_most(64), store=store).value
    assert [(one.start, one.end) for one in plan.portions] == [(0, 64), (64, 120)]
    reports = [score_portion(request_of, portion, store).value for portion in reversed(plan.portions)]
    assert [report.computed for report in reports] == [56, 64]
    assert score_portion(request_of, plan.portions[0], store).value.computed == 0
    shared = evaluate_request(request_of, store).value
    (made,) = store.list("evaluations")
    store.discard("evaluations", made)
    alone = evaluate(request_of.checkpoint, request_of.test, store, temperature=2.0).value
    assert shared == alone


def test_a_request_of_one_portion_is_evaluated_at_once(prepared: Prepared, request_of):
    begun = begin_evaluation(request_of, at_most(500), store=prepared.store)
    assert begun.value.portions == ()
    assert evaluate_request(request_of, prepared.store).reused


def test_labels_in_pieces_are_those_of_one_worker_and_so_is_the_drift(prepared: Prepared, tmp_path: Path):
    model, images, store = (
        tmp_path / "model.keras",
        draw_images(tmp_path / "images", 30, 30),
        Store(tmp_path / "s"),
    )
    save_head(prepared, model, with_population=True)
    (images / "broken.jpg").write_bytes(b"no image")
    request = LabelRequest(
        sources=(str(images),), model=str(model), file=None, false_alarm_rate=0.01, batch="1", name="champion"
    )
    with pytest.raises(NotPublished):
        label_request(request, store.looking())
    plan = begin_labels(request, at_most(32), store=store).value
    assert [(one.start, one.end) for one in plan.portions] == [(0, 32), (32, 61)]
    for portion in plan.portions:
        label_portion(plan.request, portion, store)
    shared = label_request(plan.request, store).value
    alone = label_images([images], str(model), None, store).value
    assert Path(shared.file).read_bytes() == Path(alone.file).read_bytes()
    assert shared.drift == alone.drift
    assert (shared.model, shared.unreadable) == ("champion", 1)
    assert fetch_pieces(plan.request.address, 61, store) == []


def test_images_that_come_or_go_while_others_are_labelled_end_it(prepared: Prepared, tmp_path: Path):
    images, store = draw_images(tmp_path / "images", 30, 30), Store(tmp_path / "s")
    save_head(prepared, tmp_path / "model.keras", with_population=True)
    request = LabelRequest(
        sources=(str(images),),
        model=str(tmp_path / "model.keras"),
        file=None,
        false_alarm_rate=0.01,
        batch="1",
    )
    plan = begin_labels(request, at_most(32), store=store).value
    first, second = plan.portions
    label_portion(plan.request, first, store)
    (images / "a_new_one.jpg").write_bytes(sorted(images.iterdir())[0].read_bytes())
    with pytest.raises(BadDump, match="images came to .*, or went, while they were labelled. Run the same"):
        label_portion(plan.request, second, store)
    # Nothing of one listing is taken for a piece of another.
    assert len(begin_labels(request, at_most(32), store=store).value.portions) == 2
