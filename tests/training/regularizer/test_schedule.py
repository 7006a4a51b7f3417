import pytest
from hypothesis import given
from hypothesis import strategies as st

from probekit.errors import OptionError
from probekit.training.regularizer.schedule import AlphaSchedule, Segment

finite = st.floats(-1e307, 1e307)
lengths = st.integers(1, 300)
ended = st.one_of(
    st.builds(lambda alpha, epochs: Segment(alpha, alpha, epochs), finite, lengths),
    st.builds(Segment, finite, finite, lengths),
)
endless = finite.map(lambda alpha: Segment(alpha, alpha, None))
schedules = st.tuples(
    st.lists(ended, min_size=1, max_size=4), st.one_of(st.just([]), endless.map(lambda one: [one]))
).map(lambda parts: AlphaSchedule(tuple(parts[0] + parts[1])))


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0*5 -20*15", [0.0] * 5 + [-20.0] * 15 + [-20.0] * 3),
        ("-1", [-1.0] * 4),
        ("0.5*1 -.5*2 1e-1", [0.5, -0.5, -0.5, 0.1, 0.1]),
        ("0>-1*4", [0.0, -0.25, -0.5, -0.75, -1.0, -1.0]),
        ("2>0*2 7*1", [2.0, 1.0, 7.0, 7.0]),
        ("  +3*1\t4*1\n", [3.0, 4.0, 4.0]),
    ],
)
def test_each_epoch_has_the_alpha_in_the_text(text, alphas):
    schedule = AlphaSchedule.parse(text)
    assert [schedule.alpha(epoch) for epoch in range(len(alphas))] == pytest.approx(alphas)


def test_constant_and_warm_up_are_schedules():
    assert AlphaSchedule.constant(-2) == AlphaSchedule.parse("-2")
    assert AlphaSchedule.warm_up(-2, 5) == AlphaSchedule.parse("0>-2*5 -2")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "at least one segment"),
        ("0*5,-20*15", "0*5,-20*15"),
        ("0*5 minus*3", "minus*3"),
        ("0*0", "not 0"),
        ("0*-3", "0*-3"),
        ("0*2.5", "0*2.5"),
        ("nan*3", "nan*3"),
        ("1e999*3", "not inf"),
        ("0>-1", "number of epochs"),
        ("-1 0*5", "later segments"),
        ("0 * 5", "'*'"),
        (-20, "not -20"),
        (None, "not None"),
    ],
)
def test_an_invalid_schedule_names_the_fault(text, named):
    with pytest.raises(OptionError, match=r".") as caught:
        AlphaSchedule.parse(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "3", None])
def test_an_epoch_is_a_non_negative_integer(epoch):
    with pytest.raises(OptionError, match="epoch must be a non-negative integer"):
        AlphaSchedule.constant(1).alpha(epoch)


@pytest.mark.parametrize("alpha", ["1", None, True, float("nan"), float("inf")])
def test_alpha_is_a_finite_number(alpha):
    with pytest.raises(OptionError, match="number, not"):
        AlphaSchedule.constant(alpha)


def test_a_warm_up_has_at_least_one_epoch():
    with pytest.raises(OptionError, match="must be a positive integer, not 0"):
        AlphaSchedule.warm_up(-1, 0)


@given(schedules)
def test_the_text_of_a_schedule_parses_to_an_equal_schedule(schedule):
    assert AlphaSchedule.parse(str(schedule)) == schedule
    assert hash(AlphaSchedule.parse(str(schedule))) == hash(schedule)


@given(schedules, st.integers(0, 2000))
def test_alpha_stays_within_its_segments_and_then_constant(schedule, epoch):
    ends = [value for segment in schedule.segments for value in (segment.first, segment.last)]
    alpha = schedule.alpha(epoch)
    slack = 1e-9 * max(map(abs, ends))
    assert min(ends) - slack <= alpha <= max(ends) + slack
    length = sum(segment.epochs or 0 for segment in schedule.segments)
    assert schedule.alpha(length + epoch) == schedule.segments[-1].last


@given(st.text())
def test_any_text_is_parsed_or_refused_in_one_sentence(text):
    try:
        schedule = AlphaSchedule.parse(text)
    except OptionError as error:
        assert str(error)  # noqa: PT017
    else:
        assert AlphaSchedule.parse(str(schedule)) == schedule


def test_a_schedule_is_immutable():
    schedule = AlphaSchedule.constant(1)
    with pytest.raises(AttributeError):
        schedule.segments = ()
