"""In which order fixes are ranked, and which are said to help."""

from dataclasses import replace

from renorm.doctor.trying import AS_IT_IS, FURTHER, Trials
from renorm.measure.records import MODEL, FixTrial

Figures = tuple[float | None, ...]


def trial(fix: str, gains: Figures, losses: Figures | None = None) -> FixTrial:
    losses = tuple(None if g is None else 1 - g for g in gains) if losses is None else losses
    return FixTrial(MODEL, fix, "", 9, tuple(range(len(gains))), losses, gains, None, "")


def as_it_is(seeds: int) -> FixTrial:
    return replace(trial(AS_IT_IS, (0.0,) * seeds), steps=0)


def order(*trials: FixTrial) -> list[str]:
    return [one.fix for one in Trials(trials)]


def test_by_the_mean_gain() -> None:
    low, high = trial("a", (0.1, 0.12, 0.11)), trial("b", (0.5, 0.52, 0.51))
    harm = trial("c", (-0.1, -0.12, -0.11))
    assert order(as_it_is(3), harm, low, high) == ["b", "a", AS_IT_IS, "c"]


def test_of_those_within_a_standard_error_the_simplest_is_first() -> None:
    # the difference has the mean 0.1 and the standard error 0.1 * 3**0.5 = 0.17, then 0.01
    noisy = trial("b", (0.4, 0.6, 0.8, 0.2)), trial("a", (0.6, 0.2, 0.4, 0.4))
    assert order(as_it_is(4), noisy[1], noisy[0])[:2] == ["a", "b"]
    steady = trial("b", (0.5, 0.52, 0.51)), trial("a", (0.4, 0.4, 0.4))
    assert order(as_it_is(3), steady[1], steady[0])[:2] == ["b", "a"]


def test_a_gain_within_its_standard_error_is_none() -> None:
    assert order(as_it_is(3), trial("a", (0.1, -0.1, 0.05)))[0] == AS_IT_IS


def test_a_tenth_of_the_gain_is_not_worth_a_change() -> None:
    assert order(as_it_is(3), trial("a", (0.46,) * 3), trial("b", (0.5,) * 3))[0] == "a"
    assert order(as_it_is(3), trial("a", (0.44,) * 3), trial("b", (0.5,) * 3))[0] == "b"


def test_what_diverged_is_behind_and_what_failed_is_last() -> None:
    once, never = trial("once", (None, 0.9)), trial("never", (None, None))
    good = trial("good", (0.5, 0.5))
    assert order(as_it_is(2), never, once, good) == ["good", AS_IT_IS, "once", "never"]


def test_where_the_model_as_it_is_diverged_the_loss_ranks() -> None:
    lost = trial(AS_IT_IS, (None, None))
    bad, good = (trial(fix, (None, None), (x, x)) for fix, x in (("bad", 0.9), ("good", 0.2)))
    own = trial("calibrate", (0.3, 0.3), (0.5, 0.5))
    assert order(lost, own, bad, good) == ["good", "calibrate", "bad", AS_IT_IS]


def test_training_counts_for_nothing_where_the_model_as_it_is_has_no_loss_either() -> None:
    lost = trial(AS_IT_IS, (None, None))
    further, frozen = (
        trial(fix, (None, None), losses)
        for fix, losses in ((FURTHER, (0.2, 0.3)), ("frozen", (0.21, 0.3)))
    )
    calibrated = replace(trial("calibrate", (None, None), (0.5, 0.5)), steps=0)
    found = order(lost, calibrated, further, frozen)
    assert found == ["calibrate", FURTHER, "frozen", AS_IT_IS]


def test_what_helps_is_clear_and_worth_it() -> None:
    clear, small = trial("clear", (0.5, 0.52, 0.51)), trial("small", (0.05, 0.051, 0.052))
    noisy = trial("noisy", (0.1, 0.5, 0.9))
    found = Trials([as_it_is(3), small, noisy, clear])
    assert found.helpful == (clear,)
    assert Trials([as_it_is(1), trial("once", (0.5,))]).helpful == ()


def test_alone_what_would_not_be_clear_among_many() -> None:
    one = trial("one", (0.2, 0.3, 0.4))  # 0.3 within 0.25; of five at once within 0.57
    others = [trial(str(i), (0.0, 0.1, -0.1)) for i in range(4)]
    assert Trials([as_it_is(3), one]).helpful == (one,)
    assert Trials([as_it_is(3), one, *others]).helpful == ()


def test_what_further_training_gives_too_is_no_help_of_a_fix() -> None:
    further = trial(FURTHER, (0.5, 0.52, 0.51))
    same, better = trial("same", (0.5, 0.53, 0.5)), trial("better", (0.7, 0.72, 0.71))
    assert Trials([as_it_is(3), further, same]).helpful == ()
    assert Trials([as_it_is(3), further, same, better]).helpful == (better,)
    # what further training gives is no gain of theirs
    assert order(as_it_is(3), further, better, same)[:2] == ["better", AS_IT_IS]


def test_a_cure_without_training_is_before_training_that_cures_as_well() -> None:
    calibrated = FixTrial(MODEL, "calibrate", "", 0, (0, 1), (0.1, 0.1), (0.9, 0.9), None, "")
    further = trial(FURTHER, (0.92, 0.91))
    assert order(as_it_is(2), calibrated, further)[0] == "calibrate"
    assert Trials([as_it_is(2), calibrated, further]).helpful == (calibrated,)


def test_training_itself_puts_no_fix_before_calibration() -> None:
    calibrated = FixTrial(MODEL, "calibrate", "", 0, (0, 1), (0.5, 0.5), (0.5, 0.5), None, "")
    further, same = trial(FURTHER, (0.8, 0.8)), trial("same", (0.82, 0.82))
    assert order(as_it_is(2), calibrated, further, same)[0] == "calibrate"
    assert order(as_it_is(2), calibrated, further, trial("b", (0.9, 0.9)))[0] == "b"
