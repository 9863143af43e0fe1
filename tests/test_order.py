"""The order of an epoch: every row once, the same for the same seed and epoch, classes mixed, few shards at a time."""

import numpy as np
import pytest

from thaw.order import WINDOW_ROWS, group_batches, order_rows

BLOCK = 256
MANY = 200_123


@pytest.mark.parametrize("rows", [1, 2, 1000, WINDOW_ROWS])
def test_up_to_a_window_the_order_is_one_permutation_of_all_rows(rows: int):
    for seed, epoch in ((0, 0), (7, 3)):
        plain = np.random.default_rng([seed, epoch]).permutation(rows)
        np.testing.assert_array_equal(order_rows(rows, seed, epoch), plain)


@pytest.mark.parametrize("rows", [1, 300, WINDOW_ROWS, WINDOW_ROWS + 1, MANY, 16 * WINDOW_ROWS])
def test_an_epoch_has_every_row_once(rows: int):
    np.testing.assert_array_equal(np.sort(order_rows(rows, seed=1, epoch=2)), np.arange(rows))


def test_the_order_depends_on_seed_and_epoch_alone():
    one = order_rows(MANY, seed=1, epoch=2)
    np.testing.assert_array_equal(one, order_rows(MANY, seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert (one == order_rows(MANY, seed, epoch)).mean() < 0.001


@pytest.mark.parametrize("rows", [WINDOW_ROWS + 1, MANY, 16 * WINDOW_ROWS])
def test_a_window_has_rows_of_few_blocks(rows: int):
    windows = -(-rows // WINDOW_ROWS)
    for window in np.array_split(order_rows(rows, seed=0, epoch=0), windows):
        assert WINDOW_ROWS // 2 <= len(window) <= WINDOW_ROWS
        assert len(np.unique(window // BLOCK)) <= WINDOW_ROWS // BLOCK + 2


@pytest.mark.parametrize("rows", [WINDOW_ROWS + 1, MANY, 16 * WINDOW_ROWS])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_classes_mix_though_the_split_has_one_after_the_other(rows: int, share: float):
    # The second class is what comes last, as in a split.
    second = order_rows(rows, seed=3, epoch=1) >= (1 - share) * rows
    windows = np.array_split(second, -(-rows // WINDOW_ROWS))
    # Of 128 blocks or more drawn without putting back, six standard deviations.
    assert all(abs(window.mean() - share) < 6 * np.sqrt(share * (1 - share) / 128) for window in windows)
    stretches = np.array([stretch.mean() for stretch in np.array_split(second, rows // 1024)])
    assert abs(stretches.mean() - share) < 0.005
    # Drawn one by one they would be spread by 1/32 of that; windows of blocks add a little.
    assert stretches.std() < 0.15 * np.sqrt(share * (1 - share))


def test_neighbours_of_the_split_are_no_neighbours_in_the_order():
    order = order_rows(MANY, seed=0, epoch=0)
    assert (np.abs(np.diff(order)) < BLOCK).mean() < 0.02


def test_groups_hold_the_order_batch_by_batch():
    order = np.random.default_rng(0).permutation(107)
    groups = list(group_batches(order, batch_size=10, batches=3))
    assert [group.shape for group in groups] == [(3, 10)] * 3 + [(1, 10), (1, 7)]
    batches = [batch for group in groups for batch in group]
    for number, batch in enumerate(batches):
        np.testing.assert_array_equal(batch, np.sort(order[10 * number : 10 * number + 10]))
