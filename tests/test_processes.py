from types import SimpleNamespace

import accelerate
import pytest

from swaa.processes import Team, TeamError


@pytest.fixture
def join(monkeypatch):
    """A team of two of which only this process is real; ``others`` is what the other one says."""

    def make(*, first=True, others=(None, None)):
        state = SimpleNamespace(
            num_processes=2,
            process_index=0 if first else 1,
            is_main_process=first,
            device="cpu",
            left=[],
        )
        state.destroy_process_group = lambda: state.left.append(True)

        def gather(mine):
            if isinstance(others, Exception):
                raise others
            return [*mine, others] if first else [others, *mine]

        monkeypatch.setattr(accelerate, "PartialState", lambda **options: state)
        monkeypatch.setattr(accelerate.utils, "gather_object", gather)
        return Team("cpu"), state

    return make


def _fail(error):
    raise error


def test_everyone_gets_what_all_returned(join):
    team, state = join(others=("theirs", None))
    assert team.together(lambda: "ours") == ["ours", "theirs"]
    assert not state.left


def test_the_first_process_says_which_other_one_failed(join):
    team, state = join(others=(None, "RuntimeError: no more"))
    with pytest.raises(TeamError, match=r"^process 1 of 2: RuntimeError: no more$"):
        team.together(lambda: 1)
    team.dismiss()
    assert not state.left  # the other one knows, and waits for no order


def test_an_error_of_the_first_process_stays_as_it_is(join):
    team, _ = join()
    error = KeyError("ours")
    with pytest.raises(KeyError) as caught:
        team.together(lambda: _fail(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "reason", "traced"),
    [
        (ValueError("too long"), "too long", False),
        (ValueError(), "ValueError", False),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug", True),
    ],
    ids=["a mistake", "without words", "a bug"],
)
def test_another_process_hands_its_error_over(join, capsys, error, reason, traced):
    team, _ = join(first=False)
    with pytest.raises(TeamError, match=f"^process 1 of 2: {reason}$"):
        team.together(lambda: _fail(error))
    assert ("Traceback" in capsys.readouterr().err) == traced


def test_a_process_that_is_gone(join):
    team, _ = join(others=RuntimeError("Connection closed by peer"))
    with pytest.raises(TeamError, match="another process of this run is gone; run the same"):
        team.together(lambda: 1)
