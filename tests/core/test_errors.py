"""An error as a part of one of our sentences."""

from spin_core.errors import one_line


def test_one_line_has_no_line_end_and_is_cut():
    """Catches a server's page of text, or a traceback's line ends, in the middle of a sentence of ours."""
    assert one_line(ValueError("a\n  b\tc")) == "a b c" and one_line(" text\n") == "text"
    assert one_line(ValueError("a\nb"), kind=True) == "ValueError: a b"
    assert len(one_line("x " * 999)) == 200 and one_line("abcdef", 3) == "abc"
