import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.world import World


def test_alone_everything_is_its_own():
    world = World.join()
    assert (world.rank, world.size) == (0, 1)
    assert world.share([1, 2, 3]) == [1, 2, 3]
    assert world.total_of([1.0, 2.5]) == [1.0, 2.5]
    assert world.any(True)
    assert not world.any(False)
    vectors = np.ones((2, 3), dtype=np.float32)
    assert world.joined(vectors) is vectors
    tree = {"a": mx.array([1.0])}
    assert world.total(tree) is tree


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_every_item_once(size):
    items = list(range(5))
    shares = [World(rank, size).share(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_seeds_of_processes_and_places_differ():
    seeds = {World(rank, 4).seed(7 << 20, place) for rank in range(4) for place in range(50)}
    assert len(seeds) == 200


def test_seeds_fit_the_64_bits_of_mlx():
    assert World(3, 4).seed(2**64, 5) == World(3, 4).seed(0, 5)
    mx.random.seed(World(3, 4).seed(2**83, 2**40))
