import pytest

from swaa.layers import parse_layers, resolve_layers

RESOLVED = {
    ("odd", 7): (1, 3, 5),
    ("even", 7): (0, 2, 4, 6),
    ("odd", 1): (),
    ("every:4", 9): (0, 4, 8),
    ("every:4+1", 9): (1, 5),
    ("every:1", 3): (0, 1, 2),
    ("first:1/4", 8): (0, 1),
    ("middle:1/2", 8): (2, 3, 4, 5),
    ("middle:1/2", 30): tuple(range(7, 22)),
    ("middle:1/4", 30): tuple(range(11, 19)),
    ("last:1/3", 9): (6, 7, 8),
    ("last:0.25", 8): (6, 7),
    ("first:1", 3): (0, 1, 2),
    ("middle:1/4", 1): (),
    ((), 4): (),
    ((0, 3), 4): (0, 3),
}


@pytest.mark.parametrize(("given", "resolved"), RESOLVED.items(), ids=str)
def test_selection_names_these_layers(given, resolved):
    selection, num_layers = given
    parsed = parse_layers(selection, name="full_layers")
    assert resolve_layers(parsed, num_layers, name="full_layers") == resolved


def test_a_list_is_sorted_and_without_repetitions():
    assert parse_layers([5, 1, 5, 3], name="full_layers") == (1, 3, 5)


def test_layers_that_the_model_lacks_are_dropped_with_one_warning():
    with pytest.warns(UserWarning, match="full_layers: layers 4, 35 dropped.* is 3") as caught:
        assert resolve_layers((1, 4, 35), 4, name="full_layers") == (1,)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["1", "3"], TypeError, r"full_layers holds '1', a str; expected layer indices such as"),
        ([True], TypeError, "full_layers holds True, a bool"),
        ([1.0], TypeError, r"full_layers holds 1\.0, a float"),
        (3, TypeError, r"full_layers is 3; expected a list of layer indices such as \[1, 3, 5\]"),
        (None, TypeError, "full_layers is None; expected a list"),
        ([2, -1], ValueError, "full_layers holds -1; layer indices start at 0"),
        (
            "odds",
            ValueError,
            "full_layers: unknown rule 'odds'; choose from all, odd, even, every:N",
        ),
        ("odd:1", ValueError, "unknown rule 'odd:1'"),
        ("1,3", ValueError, r"unknown rule '1,3'; choose from .*, or list layer indices"),
        ("every:0", ValueError, "'every:0' is not a rule; write every:4 or every:4.1"),
        ("every:x", ValueError, "'every:x' is not a rule"),
        ("every:4+4", ValueError, "picks i % 4 == 4; the offset is too large"),
        ("first:0", ValueError, r"'first:0' needs a fraction in \(0, 1\], such as middle:1/2"),
        ("middle:3/2", ValueError, "'middle:3/2' needs a fraction"),
        ("last:1/0", ValueError, "'last:1/0' needs a fraction"),
        ("last:", ValueError, "'last:' needs a fraction"),
        ("first:1e30000000", ValueError, "'first:1e30000000' needs a fraction"),
        ("last:1e-3", ValueError, "'last:1e-3' needs a fraction"),
        ("first:" + "9" * 10**6, ValueError, r"'first:9+\.\.\.9+' needs a fraction"),
        ("every:" + "9" * 10**6, ValueError, r"'every:9+\.\.\.9+' is not a rule"),
        ("z" * 10**6, ValueError, r"unknown rule 'z+\.\.\.z+'; choose"),
        ([-(10**5000)], ValueError, "full_layers holds a very large int; layer indices start"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_anything_else_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        parse_layers(value, name="full_layers")
