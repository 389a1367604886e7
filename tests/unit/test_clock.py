"""The server's time between two bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from bson.objectid import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from axeq.words.clock import LocalClock, ServerClock, milliseconds

T0 = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Ticks:
    """A monotonic clock in whole microseconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        return self.now / 1_000_000


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def sample(clock: ServerClock, server_time: datetime, sent: int, received: int) -> None:
    clock.observe(server_time, sent / 1_000_000, received / 1_000_000)


@given(
    offset=st.integers(0, 999_999),
    there=st.integers(0, 3_000_000),
    back=st.integers(0, 3_000_000),
    later=st.integers(0, 60_000_000),
)
def test_the_servers_true_time_lies_between_the_bounds(offset: int, there: int, back: int, later: int) -> None:
    """Whenever between sending and receiving the server read its clock, which it tells in milliseconds."""
    ticks = Ticks()
    clock = ServerClock(monotonic=ticks)

    read_at = T0 + offset * MICROSECOND
    sample(clock, milliseconds(read_at), 0, there + back)
    ticks.now = there + back + later
    true = read_at + (back + later) * MICROSECOND

    assert clock.earliest() <= true
    assert milliseconds(true) <= clock.latest()
    assert clock.latest() - clock.earliest() <= timedelta(microseconds=there + back, milliseconds=2)


@given(st.lists(st.tuples(st.integers(0, 500_000), st.integers(0, 500_000)), min_size=2, max_size=8))
def test_the_bounds_hold_over_any_run_of_samples(round_trips: list[tuple[int, int]]) -> None:
    ticks = Ticks()
    clock = ServerClock(monotonic=ticks)

    for there, back in round_trips:
        sent = ticks.now
        read_at = T0 + (sent + there) * MICROSECOND
        ticks.now = sent + there + back
        sample(clock, milliseconds(read_at), sent, ticks.now)
        ticks.now += 1000

        assert clock.earliest() <= T0 + ticks.now * MICROSECOND
        assert milliseconds(T0 + ticks.now * MICROSECOND) <= clock.latest()


def test_the_shortest_round_trip_counts(ticks: Ticks) -> None:
    clock = ServerClock(monotonic=ticks)

    sample(clock, T0, 0, 2_000)
    sample(clock, T0 + timedelta(seconds=1), 1_000_000, 1_500_000)
    ticks.now = 2_000_000

    assert clock.latest() - clock.earliest() == timedelta(milliseconds=2)


def test_a_short_round_trip_of_long_ago_counts_no_more(ticks: Ticks) -> None:
    clock = ServerClock(max_age=60, monotonic=ticks)

    sample(clock, T0, 0, 2_000)
    sample(clock, T0 + timedelta(seconds=200), 200_000_000, 200_500_000)
    ticks.now = 200_500_000

    assert clock.latest() - clock.earliest() == timedelta(milliseconds=500)


def test_a_clock_is_stale_until_measured_and_after_its_age(ticks: Ticks) -> None:
    clock = ServerClock(max_age=60, monotonic=ticks)

    before = clock.stale
    sample(clock, T0, 0, 0)
    ticks.now = 60_000_000
    at_its_age = clock.stale
    ticks.now = 60_000_001

    assert (before, at_its_age, clock.stale) == (True, False, True)


def test_a_clock_that_is_known_only_vaguely_is_measured_again_after_a_second_and_then_ever_less_often(
    ticks: Ticks,
) -> None:
    clock = ServerClock(max_age=60, monotonic=ticks)
    asked = []

    for second in range(200):
        ticks.now = second * 1_000_000 + 400_000
        if clock.stale:
            asked.append(second)
            for _ in range(2):  # a long reading is taken once more
                ticks.now += 50_000
                sample(clock, T0 + ticks.now * MICROSECOND, ticks.now - 50_000, ticks.now)

    assert asked == [0, 2, 5, 10, 19, 36, 69, 130, 191]
    assert not clock.unsure


def test_a_clock_that_has_come_to_be_known_well_is_measured_once_a_minute(ticks: Ticks) -> None:
    clock = ServerClock(max_age=60, monotonic=ticks)
    sample(clock, T0, 0, 1_000_000)

    ticks.now = 2_000_001
    vague = clock.stale, clock.unsure
    sample(clock, T0 + timedelta(seconds=2), 2_000_000, 2_001_000)
    ticks.now = 62_001_000

    assert vague == (True, False)
    assert (clock.stale, clock.latest() - clock.earliest()) == (False, timedelta(milliseconds=1))


def test_a_doubted_clock_is_measured_anew_and_forgets_what_it_knew(ticks: Ticks) -> None:
    clock = ServerClock(monotonic=ticks)
    sample(clock, T0, 0, 0)

    clock.doubt()
    doubted = clock.stale
    sample(clock, T0 + timedelta(hours=1), 0, 1_000)

    assert doubted
    assert not clock.stale
    assert clock.earliest() >= T0 + timedelta(minutes=59)


def test_a_doubted_clock_can_still_be_read_until_then(ticks: Ticks) -> None:
    clock = ServerClock(monotonic=ticks)
    sample(clock, T0, 0, 0)

    clock.doubt()

    assert clock.earliest() == T0


def test_a_new_primary_is_doubted_once_and_an_older_one_never(ticks: Ticks) -> None:
    clock = ServerClock(monotonic=ticks)
    older, newer = ObjectId.from_datetime(T0), ObjectId.from_datetime(T0 + timedelta(days=1))
    stale = []

    for election in (None, older, older, newer, older, newer):
        sample(clock, T0, 0, 0)
        clock.follow(election)
        stale.append(clock.stale)

    assert stale == [False, True, False, True, False, False]


def test_a_clock_that_was_never_measured_says_so_instead_of_guessing() -> None:
    with pytest.raises(RuntimeError, match="before it was measured"):
        ServerClock().earliest()


def test_the_lower_bound_is_rounded_down_and_the_upper_one_up(ticks: Ticks) -> None:
    clock = ServerClock(monotonic=ticks)

    sample(clock, T0, 0, 0)
    ticks.now = 1_400

    assert clock.earliest() == T0 + timedelta(milliseconds=1)
    assert clock.latest() == T0 + timedelta(milliseconds=2)


def test_milliseconds_are_cut_in_utc() -> None:
    moment = datetime(2026, 5, 4, 14, 0, 0, 123_999, tzinfo=timezone(timedelta(hours=2)))

    cut = milliseconds(moment)

    assert (cut, cut.tzinfo) == (datetime(2026, 5, 4, 12, 0, 0, 123_000, tzinfo=UTC), UTC)


def test_a_stores_own_clock_is_never_stale_and_has_no_doubt() -> None:
    clock = LocalClock()
    before = clock.earliest()

    clock.observe(T0, 0, 0)
    clock.doubt()

    assert not clock.stale
    assert before <= clock.latest() <= milliseconds(datetime.now(UTC))
