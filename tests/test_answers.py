"""The table of answers: the same rows as CSV and as Parquet, whole or not there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import PROJECT
from thaw.answers import LabelledImage, check_suffix, read_answers, replace_file, write_answers
from thaw.errors import BadConfig

CLASSES = ("cat", "dog")
ROWS = [
    LabelledImage(path="a/1.jpg", label="cat", probabilities=(0.7512345678, 0.2487654322)),
    LabelledImage(path='b, "odd"\n.jpg', label="dog", probabilities=(0.0, 1.0)),
    LabelledImage(path="ü/3.jpg", error="not an image: HTML"),
]


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet", "ANSWERS.CSV", "Answers.Parquet"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[2:], []])
def test_rows_come_back_as_they_were_written(tmp_path: Path, name: str, rows: list[LabelledImage]):
    write_answers(tmp_path / name, CLASSES, rows, Path(name).suffix)
    read = read_answers(tmp_path / name)
    assert [(row.path, row.label, row.error) for row in read] == [
        (row.path, row.label, row.error) for row in rows
    ]
    for seen, row in zip(read, rows, strict=True):
        assert seen.probabilities == (row.probabilities and pytest.approx(row.probabilities, abs=5e-7))


def test_parquet_holds_what_csv_holds_in_columns_with_types(tmp_path: Path):
    import pyarrow.parquet

    for name in ("answers.csv", "answers.parquet"):
        write_answers(tmp_path / name, CLASSES, ROWS, Path(name).suffix)
    table = pyarrow.parquet.read_table(tmp_path / "answers.parquet")
    header = (tmp_path / "answers.csv").read_text().splitlines()[0]
    assert table.column_names == header.split(",") == ["path", "label", "p_cat", "p_dog", "error"]
    types = ["string", "string", "double", "double", "string"]
    assert [str(field.type) for field in table.schema] == types
    assert table["p_cat"].to_pylist() == [0.7512345678, 0.0, None]
    assert table["label"].null_count == 1 and table["error"].null_count == 2


@pytest.mark.parametrize("name", ["answers.xlsx", "answers", "answers.csv.gz"])
def test_another_suffix_is_refused_with_those_that_there_are(name: str):
    with pytest.raises(BadConfig, match=rf"\.csv or \.parquet. Received: '{name}'"):
        check_suffix(Path(name))


def test_a_file_stays_as_it_was_where_the_next_one_is_not_finished(tmp_path: Path):
    file = tmp_path / "answers.csv"
    file.write_text("before")
    with pytest.raises(OSError, match="full"), replace_file(file) as partial:
        partial.write_text("half of")
        raise OSError("the disk is full")
    assert [found.name for found in tmp_path.iterdir()] == ["answers.csv"]
    assert file.read_text() == "before"


def test_a_killed_writer_leaves_no_half_file_and_the_next_one_is_not_disturbed(tmp_path: Path):
    file = tmp_path / "answers.parquet"
    code = f"""
import os, signal
from pathlib import Path
from thaw.answers import replace_file
with replace_file(Path({str(file)!r})) as partial:
    partial.write_bytes(b"PAR1, and no end")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=PROJECT, env=os.environ)
    assert ended.returncode == -signal.SIGKILL
    assert not file.exists()
    with replace_file(file) as partial:
        write_answers(partial, CLASSES, ROWS, file.suffix)
    assert len(read_answers(file)) == len(ROWS)
    assert [found.name for found in tmp_path.iterdir()] == ["answers.parquet"]
