"""The index of the feature cache: every key where it was put, told apart by all of its bytes."""

import numpy as np
import pytest

from thaw.index import KEY_DTYPE, KeyIndex, pack_keys


def draw_keys(count: int, seed: int = 0) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(count * KEY_DTYPE.itemsize), KEY_DTYPE)


def number_places(count: int, shard: int = 0) -> np.ndarray:
    return np.column_stack([np.full(count, shard), np.arange(count)])


def key_of(*words: int, view: int = 0) -> tuple[str, int]:
    """A key whose image consists of four 64-bit words."""
    return b"".join(word.to_bytes(8, "little") for word in words).hex(), view


def test_keys_are_packed_as_shards_keep_them():
    keys = [("ab" * 32, 0), ("0f" * 31 + "00", 7), ("00" * 32, 2**32 - 1)]
    kept = b"".join(bytes.fromhex(image) + view.to_bytes(4, "little") for image, view in keys)
    assert pack_keys(keys).tobytes() == kept
    assert pack_keys(iter(keys)).dtype == KEY_DTYPE
    assert pack_keys([]).shape == (0,)


def test_keys_that_are_packed_already_stay_as_they_are():
    packed = pack_keys([("ab" * 32, 0)])
    assert pack_keys(packed) is packed


def test_more_keys_than_are_packed_at_a_time_are_packed_all():
    keys = [(f"{number:064x}", number % 3) for number in range(70_000)]
    packed = pack_keys(keys)
    assert len(packed) == 70_000
    assert packed["image"][-1].tobytes().hex() == keys[-1][0]
    assert packed["view"].tolist() == [view for _, view in keys]


@pytest.mark.parametrize("image", ["ab", "ab" * 33, "no digits"])
def test_an_image_that_is_not_told_by_a_whole_digest_is_refused(image: str):
    with pytest.raises(ValueError):
        pack_keys([(image, 0)])


def test_an_empty_index_holds_nothing():
    index = KeyIndex()
    index.add(draw_keys(0), number_places(0))
    assert len(index) == 0
    assert index.find(draw_keys(3)).tolist() == [[-1, -1]] * 3
    assert index.find(draw_keys(0)).shape == (0, 2)


def test_every_key_is_found_where_it_was_put_and_no_other_is():
    keys = draw_keys(70_100)
    index = KeyIndex()
    index.add(keys[:70_000], number_places(70_000, shard=5))
    found = index.find(keys[::-1])
    assert len(index) == 70_000
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found[:100], np.full((100, 2), -1))
    np.testing.assert_array_equal(found[100:], number_places(70_000, shard=5)[::-1])


def test_shard_after_shard_makes_the_index_that_all_at_once_make():
    keys, index = draw_keys(3_000), KeyIndex()
    for shard in range(300):
        index.add(keys[10 * shard : 10 * shard + 10], number_places(10, shard))
        assert index.find(keys[10 * shard : 10 * shard + 11])[-1].tolist() == (
            [-1, -1] if shard < 299 else [299, 9]
        )
    expected = np.column_stack([np.repeat(np.arange(300), 10), np.tile(np.arange(10), 300)])
    np.testing.assert_array_equal(index.find(keys), expected)
    # A lookup searches each of them.
    assert len(index._runs) < 10


def test_keys_with_one_fingerprint_are_told_apart_by_all_of_their_bytes():
    # The words of an image are joined by exclusive or: in another order they give the same.
    alike = [key_of(1, 2, 3, 4), key_of(4, 3, 2, 1), key_of(2, 1, 3, 4), key_of(1, 2, 4, 3)]
    other = [key_of(0, 4, 0, 0), key_of(3, 4, 1, 2), key_of(0, 4, 0, 0, view=1), key_of(2**64 - 1, 0, 0, 0)]
    for halves in (4, 2):
        index = KeyIndex()
        index.add(pack_keys(alike[:halves]), number_places(4)[:halves])
        index.add(pack_keys(alike[halves:]), number_places(4)[halves:])
        index.add(draw_keys(100), number_places(100, shard=1))
        assert index.find(pack_keys(alike)).tolist() == [[0, row] for row in range(4)]
        assert index.find(pack_keys(other)).tolist() == [[-1, -1]] * 4


def test_views_of_an_image_are_keys_of_their_own():
    keys = pack_keys([("ab" * 32, view) for view in range(50)])
    index = KeyIndex()
    index.add(keys, number_places(50))
    np.testing.assert_array_equal(index.find(keys), number_places(50))


def test_a_key_that_comes_again_keeps_its_first_place():
    # Few different words: keys are often the same, and fingerprints more often.
    dice = np.random.default_rng(0)
    index, expected = KeyIndex(), {}
    for shard in range(40):
        keys = [key_of(*words, view=view) for *words, view in dice.integers(3, size=(30, 5)).tolist()]
        index.add(pack_keys(keys), number_places(30, shard))
        for row, key in enumerate(keys):
            expected.setdefault(key, [shard, row])
        assert len(index) == len(expected)
    assert index.find(pack_keys(expected)).tolist() == list(expected.values())
