import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from semiovs_jax.ovs.tokenizer import clean, make_tokenizer
from tests.golden import Golden, golden_path


@pytest.mark.parametrize("name", ["clip_text_base", "clip_text_large"])
def test_clip_ids_equal_open_clip(name):
    golden = Golden(golden_path(name))
    tokenizer = make_tokenizer("clip_bpe", golden.meta["config"]["context_length"])
    np.testing.assert_array_equal(tokenizer.encode(golden.meta["prompts"]), golden["token_ids"])
    np.testing.assert_array_equal(tokenizer.encode(golden.meta["tokenizer_only_prompts"]), golden["token_ids_only"])


def test_clip_cut_keeps_the_end():
    ids = make_tokenizer("clip_bpe", 5).encode(["one two three four five", "a"])
    assert ids.dtype == np.int32
    assert ids.shape == (2, 5)
    assert ids[0, 0] == 49406
    assert ids[0, -1] == 49407
    assert list(ids[1]) == [49406, 320, 49407, 0, 0]


def test_clean_mends_entities_spaces_and_case():
    assert clean("  Salt &amp;amp;\tPEPPER \n caf\u00c3\u00a9 ") == "salt & pepper café"


def test_bytes_ids():
    ids = make_tokenizer("bytes", 6).encode(["aB", "a very long text", ""])
    assert ids.tolist() == [[257, 98, 99, 258, 0, 0], [257, 98, 33, 119, 102, 258], [257, 258, 0, 0, 0, 0]]


@given(st.text(max_size=30))
def test_bytes_count_and_end(text):
    tokenizer = make_tokenizer("bytes", 200)
    row = tokenizer.encode([text])[0]
    count = tokenizer.count([text])[0]
    assert np.argmax(row) == count - 1
    assert row[count - 1] == tokenizer.end_id
    assert not row[count:].any()
    assert bytes(int(i) - 1 for i in row[1 : count - 1]).decode() == clean(text)


@pytest.mark.parametrize("name", ["clip_bpe", "bytes"])
def test_count_is_the_uncut_length(name):
    long = make_tokenizer(name, 500)
    text = "a photo of a " + "very " * 50 + "large dog"
    expected = int(np.count_nonzero(long.encode([text])))
    assert make_tokenizer(name, 8).count([text]) == [expected]


def test_unknown_name_and_useless_context():
    with pytest.raises(InputError, match='tokenizer "words" is unknown; use one of: bytes, clip_bpe'):
        make_tokenizer("words", 77)
    with pytest.raises(InputError, match="context_length 2"):
        make_tokenizer("bytes", 2)
