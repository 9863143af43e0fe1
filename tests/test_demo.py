"""The first thing a new user runs: the demo, with no server set and nothing downloaded."""

from pathlib import Path

import pytest

from tests.command import Server


@pytest.mark.slow
def test_the_demo_opens_the_gate_by_merit_fine_tunes_and_never_claims_to_be_imagenet(tmp_path: Path):
    # An empty address stands for none: the run starts its own temporary server.
    nobody = Server(url="", home=tmp_path)
    ended = nobody.thaw("demo", "--store", tmp_path / "demo", "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["verdict"] == "plateaued"
    assert result["gate_overridden"] is False
    assert result["head_test_accuracy"] > 0.75
    assert result["test_accuracy"] > result["head_test_accuracy"]
    assert "Starting temporary server" in ended.err
    assert "imagenet" not in (ended.out + ended.err).lower()
    report = Path(result["report"]).read_text()
    assert report.lower().count("imagenet") == report.count("not ImageNet")
