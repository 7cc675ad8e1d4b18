"""Damaged and hostile files are read, or refused with an `InputError`; `python -m tests.fuzz` tries many more."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzzing.run import Example, kept_examples, workshop
from tests.fuzzing.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    with workshop(name) as shop:
        for example in kept_examples(name):
            shop.try_example(example)

        @settings(
            max_examples=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(shop.examples())
        def attempt(example: Example) -> None:
            shop.try_example(example)

        attempt()
