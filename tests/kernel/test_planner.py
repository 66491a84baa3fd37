"""What the next step feeds, decided without a device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.pace import Pace
from llmos.kernel.planner import Limits, Planner, Share, Want

# A processor on which every row costs nearly as much as the first, and a GPU on which it does not.
SLOW = {1: 0.007, 4: 0.023, 16: 0.068, 64: 0.27, 512: 2.1}
WIDE = {1: 0.010, 16: 0.011, 64: 0.013, 512: 0.040}


def decode(key: int, *, urgent: bool = False, last: int = 0, remaining: int = 48) -> Want:
    return Want(key, 1, True, urgent, remaining, last)


def prompt(key: int, tokens: int, *, urgent: bool = False, last: int = 0) -> Want:
    return Want(key, tokens, False, urgent, 48, last)


def planner(passes: dict[int, float] = SLOW, limits: Limits | None = None) -> Planner:
    return Planner(limits or Limits(), Pace(passes))


def test_everybody_that_decodes_is_in_the_step() -> None:
    assert planner().plan([decode(1), decode(2)]) == [Share(1, 1, True), Share(2, 1, True)]


def test_a_prompt_alone_is_read_in_chunks_that_keep_the_step_short() -> None:
    chosen = planner(limits=Limits(calm_step_s=0.27)).plan([prompt(1, 2000)])
    assert chosen == [Share(1, 64, False)]


def test_a_prompt_is_cut_after_whole_tiles_and_its_end_is_not_cut() -> None:
    limits = Limits(calm_step_s=0.9)  # time for about 200 tokens
    (share,) = planner(limits=limits).plan([prompt(1, 2000)])
    assert share.tokens == 192
    assert planner(limits=limits).plan([prompt(1, 215)]) == [Share(1, 215, False)]


def test_a_pass_that_seems_longer_than_a_step_may_be_is_taken_all_the_same() -> None:
    stalled = {1: 2.0, 512: 900.0}
    assert planner(stalled).plan([prompt(1, 1), prompt(2, 40)]) == [Share(1, 1, False)]
    assert planner(stalled).plan([prompt(2, 40, urgent=True)]) == [Share(2, 16, False)]


def test_where_urgent_ones_come_and_go_steps_are_shorter_still_for_a_while() -> None:
    plans = planner(limits=Limits(step_s=0.27, calm_step_s=2.1))
    assert plans.plan([prompt(1, 5000)]) == [Share(1, 512, False)]
    plans.plan([decode(2, urgent=True)])
    assert plans.plan([prompt(1, 5000)]) == [Share(1, 64, False)]
    for _ in range(500):
        plans.plan([prompt(1, 5000)])
    assert plans.plan([prompt(1, 5000)]) == [Share(1, 512, False)]


def test_steps_are_short_from_when_an_urgent_process_starts() -> None:
    plans = planner(limits=Limits(step_s=0.27, calm_step_s=2.1))
    plans.expect_urgent()
    assert plans.plan([prompt(1, 5000)]) == [Share(1, 64, False)]


def test_a_prompt_ahead_of_those_that_decode_is_read_beside_them() -> None:
    shares = planner().plan([prompt(1, 600), decode(2)])
    assert shares[0] == Share(2, 1, True)
    assert shares[1].key == 1
    assert shares[1].tokens > 16


def test_a_long_prompt_behind_those_that_decode_waits_where_rows_are_dear() -> None:
    assert planner(SLOW).plan([decode(1), prompt(2, 2000)]) == [Share(1, 1, True)]


def test_the_same_prompt_is_read_at_once_where_rows_are_nearly_free() -> None:
    shares = planner(WIDE).plan([decode(1), prompt(2, 400)])
    assert [share.key for share in shares] == [1, 2]


def test_a_prompt_that_waits_gets_its_share_of_the_time() -> None:
    pace, plans = Pace(SLOW), Planner(Limits(gain=0.0, prompt_share=0.25), Pace(SLOW))
    prompt_s = decode_s = 0.0
    for _ in range(400):
        shares = plans.plan([decode(1), prompt(2, 5000)])
        decode_s += pace.pass_s(1)
        prompt_s += sum(pace.pass_s(share.tokens) for share in shares if share.key == 2)
    assert 0.2 < prompt_s / (prompt_s + decode_s) < 0.3


def test_an_urgent_decode_bounds_the_step_and_the_others_take_turns() -> None:
    pace, plans = Pace(SLOW), planner()
    last = dict.fromkeys(range(2, 12), 0)
    for step in range(1, 30):
        shares = plans.plan([decode(1, urgent=True), *(decode(k, last=n) for k, n in last.items())])
        assert pace.pass_s(len(shares)) <= 3.2 * pace.pass_s(1)
        assert shares[0].key == 1
        assert len(shares) > 1
        for share in shares[1:]:
            last[share.key] = step
    assert min(last.values()) >= 20


def test_an_urgent_prompt_is_read_before_anything_else() -> None:
    shares = planner().plan([decode(1), prompt(2, 500), prompt(3, 40, urgent=True)])
    assert shares == [Share(3, 40, False)]


def test_a_background_prompt_gets_what_an_urgent_decode_leaves() -> None:
    pace = Pace(SLOW)
    shares = planner().plan([decode(1, urgent=True), prompt(2, 500)])
    assert shares[0] == Share(1, 1, True)
    assert shares[1].key == 2
    assert pace.step_s(rows=1, prompt_tokens=shares[1].tokens) <= 3.2 * pace.pass_s(1)


def test_beside_an_urgent_decode_a_run_of_forced_tokens_comes_in_parts() -> None:
    forced = decode(2)._replace(pending=12)
    shares = planner().plan([decode(1, urgent=True), forced])
    assert shares[0] == Share(1, 1, True)
    assert shares[1].key == 2
    assert 0 < shares[1].tokens < 12
    assert shares[1].is_decode


def test_what_a_cut_at_a_tile_leaves_is_not_begun_with_another_prompt() -> None:
    limits = Limits(calm_step_s=0.4)  # time for about 90 tokens
    assert planner(limits=limits).plan([prompt(1, 900), prompt(2, 900)]) == [Share(1, 64, False)]


@st.composite
def mixes(draw: st.DrawFn) -> list[Want]:
    count = draw(st.integers(1, 24))
    return [
        Want(
            key,
            draw(st.integers(1, 900)),
            draw(st.booleans()),
            draw(st.integers(0, 9)) == 0,
            draw(st.integers(0, 100)),
            draw(st.integers(0, 50)),
        )
        for key in range(count)
    ]


@given(mixes(), st.sampled_from([SLOW, WIDE]), st.integers(16, 600))
def test_a_plan_keeps_to_the_budget_and_to_what_was_asked(
    wants: list[Want], passes: dict[int, float], batch_tokens: int
) -> None:
    shares = planner(passes, Limits(batch_tokens=batch_tokens)).plan(wants)
    by_key = {want.key: want for want in wants}
    assert len({share.key for share in shares}) == len(shares)
    assert sum(share.tokens for share in shares) <= batch_tokens
    assert all(0 < share.tokens <= by_key[share.key].pending for share in shares)


@given(mixes(), st.sampled_from([SLOW, WIDE]))
def test_nobody_starves(wants: list[Want], passes: dict[int, float]) -> None:
    """Each want is served within a bounded number of steps, if none is urgent; and always some."""
    plans = planner(passes)
    calm = [want._replace(is_urgent=False) for want in wants]
    served: set[int] = set()
    pending = {want.key: want.pending for want in calm}
    for step in range(4000):
        left = [w._replace(pending=pending[w.key], last_step=step) for w in calm if pending[w.key]]
        if not left:
            break
        shares = plans.plan(left)
        assert shares
        for share in shares:
            served.add(share.key)
            pending[share.key] -= share.tokens
    assert served == {want.key for want in calm}
