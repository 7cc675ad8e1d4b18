"""Messages of faults."""

import pickle

import pytest

from data_pipelines.errors import Faults, InputError


def test_a_message_is_one_line_a_fault():
    assert str(InputError("a.png: is missing", ValueError("b"))) == "a.png: is missing\nb"


def test_what_is_no_unicode_is_escaped():
    error = InputError("caf\udce9.png: is damaged (\ud800)")
    assert str(error).encode() == rb"caf\udce9.png: is damaged (\ud800)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    faults = Faults()
    with faults.collected("data: "):
        raise error
    with pytest.raises(InputError, match=r"^data: caf\\udce9\.png: is damaged"):
        faults.refuse()
