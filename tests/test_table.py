import pytest

from swaa.cli.table import format_bytes, format_flops, format_table


def test_columns_of_numbers_go_right_and_of_words_left():
    text = format_table(
        ("setting", "answered", "s"), [("full", "83 %", 12.5), ("naive", None, 3), ("x", "-1", 4)]
    )
    assert text.splitlines() == [
        "setting  answered     s",
        "-------  --------  ----",
        "full         83 %  12.5",
        "naive           -     3",
        "x              -1     4",
    ]


def test_rows_of_another_width_are_a_bug_and_an_empty_table_has_its_headers():
    assert format_table(("a", "b"), []).splitlines()[0] == "a  b"
    with pytest.raises((ValueError, IndexError)):
        format_table(("a", "b"), [("x",)])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (180 * 2**20, "180.0 MiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 FLOP"), (4.83e12, "4.83 TFLOP"), (4.83e15, "4.83 PFLOP"), (5.01e6, "5.01 MFLOP")],
)
def test_flops_for_people(count, text):
    assert format_flops(count) == text
