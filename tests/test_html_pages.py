from semiovs_jax import html_pages


def test_a_name_that_is_not_utf8_is_shown_escaped():
    assert html_pages.text("caf\udce9 <b>") == r"caf\udce9 &lt;b&gt;"
