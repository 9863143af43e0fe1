"""A champion beside what is to challenge it: what the one takes over from the other."""

from pathlib import Path

from tests.conftest import small_config
from tests.run_samples import make_checkpoint, make_history, make_run
from thaw.config import TrainConfig
from thaw.contest import Contender


def make_champion(config: TrainConfig) -> Contender:
    run, head = make_run(pictures={}), make_checkpoint("head", make_history())
    return Contender(
        version=None, config=config, manifest=run.manifest, split=run.split, head=head, model=head
    )


def test_a_head_goes_on_from_the_champions_only_where_both_have_the_same_shape_and_none_is_searched_for():
    config = small_config(Path("drawn.zip"))
    champion = make_champion(config)
    split = champion.split
    assert champion.starts(config, split)
    assert champion.starts(small_config(Path("drawn.zip"), head={"dropout": 0.1}), split)
    assert not champion.starts(small_config(Path("drawn.zip"), head={"dense_units": 32}), split)
    searching = small_config(Path("drawn.zip"), search={"grid": {"dropout": [0.1, 0.5]}})
    assert not champion.starts(searching, split)
    assert not make_champion(searching).starts(config, split)
