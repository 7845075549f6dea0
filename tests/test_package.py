"""What `import swaa` alone gives."""

import pytest

import swaa


def test_modules_and_public_names_are_found_on_the_package():
    assert swaa.models.EMBEDDED == "smollm2"
    assert swaa.is_adapted is swaa.adaptation.is_adapted
    assert set(swaa.__all__) <= set(dir(swaa))
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_this_name'"):
        _ = swaa.nothing_of_this_name


def test_an_adaptation_shows_its_summary():
    adaptation = swaa.Adaptation(swaa.SWAAConfig(window=8), (), "sdpa", "adapted 4 of 4 layers")
    assert repr(adaptation) == "<Adaptation: adapted 4 of 4 layers>"
