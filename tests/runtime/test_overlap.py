import threading

import pytest

from semiovs_jax.runtime.overlap import one_ahead, one_behind


def test_an_item_is_made_while_the_one_before_is_used():
    made = [threading.Event() for _ in range(3)]

    def items():
        for index, event in enumerate(made):
            event.set()
            yield index

    for index in one_ahead(items()):
        assert all(event.wait(5) for event in made[: index + 2])


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("no second item")

    found = one_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(found)


@pytest.mark.parametrize("overlap", [one_ahead, one_behind])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_keep_their_order(overlap, count):
    assert list(overlap(range(count))) == list(range(count))


def test_one_behind_makes_the_next_item_first():
    made = []
    found = one_behind(made.append(index) or index for index in range(3))
    assert next(found) == 0
    assert made == [0, 1]
