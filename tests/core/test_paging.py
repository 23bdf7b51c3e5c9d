"""Pages of lists: cursors that can be read back, and refused when they are not ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.errors import BadRequest
from quazzar.core.paging import Page, cursor_of, page_of


@given(st.from_regex(r"[\x21-\x7e]{1,120}", fullmatch=True), st.integers(1, 200))
def test_a_cursor_leads_back_to_its_key(key: str, limit: int) -> None:
    assert page_of(limit, cursor_of(key)) == Page(limit, key)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        page = page_of(1, text, key=r"job_[a-z]{3}")
    except BadRequest as error:
        assert error.details["cursor"]
    else:
        assert page.after is not None
        assert page.after.startswith("job_")


@pytest.mark.parametrize("key", ["job_abcd", "xjob_abc", "job_abc\n"])
def test_a_key_must_have_the_lists_form(key: str) -> None:
    with pytest.raises(BadRequest):
        page_of(1, cursor_of(key), key=r"job_[a-z]{3}")


def test_one_row_more_is_read_than_shown() -> None:
    assert page_of(50, None) == Page(50, None)
    assert Page(50).fetch == 51
