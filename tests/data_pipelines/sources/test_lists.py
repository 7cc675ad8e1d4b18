"""One rule of columns in all split lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.sources.lists import join_columns, read_split, split_columns

NAMES = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name == name.strip(" \t")
)


def read(folder, text: str | bytes, *, with_labels: bool = False):
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_split(folder, "list.txt", "--list", with_labels=with_labels)


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("a.jpg b.png", ["a.jpg", "b.png"]),
        ("  a.jpg    b.png ", ["a.jpg", "b.png"]),
        ("my a.jpg\tmy b.png", ["my a.jpg", "my b.png"]),
        ("my a.jpg \t\t my b.png", ["my a.jpg", "my b.png"]),
        ('"my a.jpg" b.png', ["my a.jpg", "b.png"]),
        ('"my a.jpg"\tmy b.png', ["my a.jpg", "my b.png"]),
        ('"a ""1"".jpg"', ['a "1".jpg']),
        ("a\u3000b.jpg c\xa0d.png", ["a\u3000b.jpg", "c\xa0d.png"]),
        ('"a.jpg', []),
        ('"a"b.jpg', []),
    ],
)
def test_lines_are_split_at_tabs_or_else_at_spaces_outside_of_quotes(line, columns):
    assert split_columns(line) == columns


@given(st.lists(NAMES, min_size=1, max_size=2))
def test_written_lines_are_read_as_they_were(columns):
    line = join_columns(columns)
    assert line.count("\n") == 1
    assert split_columns(line.removesuffix("\n")) == columns


def test_plain_names_are_written_plainly():
    assert join_columns(["images/a.jpg", "masks/ä.png"]) == "images/a.jpg masks/ä.png\n"


def test_comments_empty_lines_and_foreign_line_ends_are_read(tmp_path):
    found = read(tmp_path, '\ufeff# mine\r\na.jpg\r\n\r\n  # "\r"#b.jpg" b.png\nd\u2028.jpg')
    assert found == (("a.jpg", "#b.jpg", "d\u2028.jpg"), None, 1)


@pytest.mark.parametrize(
    ("text", "with_labels", "message"),
    [
        ("# nothing\n", False, r"list\.txt: the split is empty; write one `IMAGE` a line"),
        ("", True, r"list\.txt: the split is empty; write one `IMAGE LABEL` a line"),
        (
            "a.jpg b.png\nimages/china tower 0.jpg masks/china tower 0.png\n",
            True,
            r"line 2: 'images/china .*' has 6 column\(s\), .*; put a name that has spaces in double quotes, or",
        ),
        (
            "img/my photo.jpg\n",
            False,
            r"line 1: .* is read as the image 'img/my' and the label 'photo.jpg'; put a name that has spaces in double",
        ),
        ("img/my photo.jpg\n", True, r"line 1: .* is read as the image 'img/my' and the label 'photo.jpg'"),
        ("images\\a.jpg\n", False, r"line 1: 'images\\\\a.jpg' has a backslash; write / between folders"),
        ('"a.jpg b.png\n', True, r"""line 1: '"a.jpg b.png' has quotes that do not match; close each double quote"""),
        (
            b"a.jpg\ncaf\xe9.jpg\n",
            False,
            r"line 2 is not UTF-8: 'caf\\\\xe9.jpg'; rename the file and write the list as",
        ),
        ("a.jpg\0\n", False, r"line 1: 'a.jpg\\x00' is not the name of a file"),
        (".\n", False, r"line 1: '.' is not the name of a file"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_to_do(tmp_path, text, with_labels, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, with_labels=with_labels)


def test_an_ambiguous_line_is_settled_by_a_tab_or_quotes(tmp_path):
    assert read(tmp_path, "img/my\tphoto.jpg\n", with_labels=True).images == ("img/my",)
    assert read(tmp_path, '"img/my photo.jpg"\n').images == ("img/my photo.jpg",)
