"""The update's state machine: what is offered, what an interruption means, who may come back."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest, NodeError, Rejected
from nodeapp.core.release import Release, is_newer, version_key
from nodeapp.core.update import (
    RESTING,
    STEPS,
    TRIAL,
    Allowed,
    ApplyAsked,
    Arm,
    Bless,
    CheckAsked,
    Download,
    Drain,
    FallBack,
    FetchMetadata,
    GateFailed,
    GatePassed,
    HoldSet,
    Install,
    Phase,
    Refused,
    ReleaseFound,
    Restart,
    Resume,
    RollbackAsked,
    Snapshot,
    Started,
    StepDone,
    StepFailed,
    TrialBegan,
    UpdateState,
)
from nodeapp.core.update_transitions import MAX_BLACKLIST, MAX_TRIES, apply, why_not

ONE = UpdateState(current="0.1.0", newest="0.1.0")


def release(version, least_from=""):
    return Release(version, least_from, "", ())


def after(state, *changes):
    for change in changes:
        state, _effects = apply(state, change)
    return state


def offered(version="0.2.0", state=ONE):
    return after(state, CheckAsked(), ReleaseFound(release(version)))


def begun(version="0.2.0", state=ONE):
    """It was still offered when it was to be installed."""
    return after(offered(version, state), ApplyAsked(), ReleaseFound(release(version)))


def pending(version="0.2.0", state=ONE):
    return after(begun(version, state), *(StepDone(step) for step in STEPS[:-1]))


def test_a_good_update_runs_its_steps_in_order_and_is_blessed():
    state, effects = apply(ONE, CheckAsked())
    assert effects == (FetchMetadata(),)
    state, effects = apply(state, ReleaseFound(release("0.2.0")))
    assert (state.phase, state.available.version, effects) == (Phase.IDLE, "0.2.0", ())
    state, effects = apply(state, ApplyAsked())
    assert (state.phase, effects) == (Phase.CHECKING, (FetchMetadata(),))
    state, effects = apply(state, ReleaseFound(release("0.2.0")))
    seen = [*effects]
    for step in STEPS[:-1]:
        assert state.phase is step
        gpus = 2 if step is Phase.ARMING else None
        state, effects = apply(state, StepDone(step, gpus=gpus))
        seen += effects
    wanted = [Download, Install, Drain, Snapshot, Arm, Restart]
    assert [type(effect) for effect in seen] == wanted
    assert (state.phase, state.current) == (Phase.REBOOT_PENDING, "0.1.0")
    state = after(state, TrialBegan())
    assert (state.phase, state.tries_left) == (Phase.BOOTED, MAX_TRIES - 1)
    state, effects = apply(state, GatePassed())
    assert effects == (Bless("0.2.0", "0.1.0"),)
    assert (state.phase, state.current, state.previous) == (Phase.BLESSED, "0.2.0", "0.1.0")
    assert (state.newest, state.gpus, state.candidate) == ("0.2.0", 2, None)


def test_a_failed_gate_rolls_back_blacklists_and_is_not_tried_again():
    state, effects = apply(after(pending(), TrialBegan()), GateFailed("p2p is fatal"))
    assert effects == (FallBack("0.1.0", "0.2.0"),)
    assert (state.phase, state.current) == (Phase.ROLLED_BACK, "0.1.0")
    assert state.blacklist == (Refused("0.2.0", "p2p is fatal"),)
    again = offered("0.2.0", state)
    assert again.available is None
    assert again.reason == "0.2.0 is blacklisted: p2p is fatal"
    with pytest.raises(Rejected, match="no newer release"):
        apply(again, ApplyAsked())
    assert offered("0.2.1", state).available.version == "0.2.1"


def test_a_trial_that_never_gives_a_verdict_is_given_up_after_its_tries():
    state = pending()
    for left in reversed(range(MAX_TRIES)):
        state = after(state, TrialBegan())
        assert (state.phase, state.tries_left) == (Phase.BOOTED, left)
    state = after(state, TrialBegan())
    assert state.phase is Phase.ROLLED_BACK
    assert "no verdict after 3 starts" in state.blacklist[0].reason


@pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "0.1.0-rc.3"])
def test_a_downgrade_is_not_offered(version):
    assert offered(version).available is None


def test_what_was_blessed_once_stays_the_mark_after_a_rollback():
    state = after(pending(), TrialBegan(), GatePassed())
    state, effects = apply(state, RollbackAsked())
    assert effects == (Drain(),)
    state = after(state, *(StepDone(step) for step in STEPS[3:-1]), TrialBegan(), GatePassed())
    assert (state.current, state.previous, state.newest) == ("0.1.0", "", "0.2.0")
    assert state.blacklist == (Refused("0.2.0", "rolled back by the operator"),)
    assert offered("0.1.5", state).available is None
    with pytest.raises(Rejected, match="only release"):
        apply(state, RollbackAsked())


def refused_offer():
    return StepFailed("release metadata has expired", is_offer_void=True)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (ReleaseFound(None), "0.2.0 is not offered any more"),
        (ReleaseFound(release("0.1.0")), "0.2.0 is not offered any more"),
        (ReleaseFound(release("0.0.9")), "0.0.9 is not newer than 0.1.0"),
        (refused_offer(), "release metadata has expired"),
    ],
)
def test_what_is_not_offered_any_more_is_not_installed(found, reason):
    state, effects = apply(after(offered(), ApplyAsked()), found)
    assert (state.phase, state.available, state.is_applying) == (Phase.IDLE, None, False)
    assert (effects, state.candidate) == ((), None)
    assert state.reason.startswith(reason)


def test_an_offer_that_was_refused_by_a_check_cannot_be_applied():
    state = after(offered(), CheckAsked(), refused_offer())
    with pytest.raises(Rejected, match="no newer release"):
        apply(state, ApplyAsked())
    # An outage says nothing about the release.
    away = after(offered(), CheckAsked(), StepFailed("does not answer"))
    assert away.available == release("0.2.0")


def test_an_installation_that_was_interrupted_by_its_first_look_is_told():
    state = after(offered(), ApplyAsked(), Started("0.1.0"))
    assert (state.phase, state.is_applying) == (Phase.IDLE, False)
    assert state.reason == "interrupted while checking; apply it again"


@pytest.mark.parametrize("step", STEPS[2:6])
def test_what_an_installation_overwrites_is_not_gone_back_to(step):
    """Slot 0.1.0 is filled with 0.3.0, then a step fails, or the power."""
    state = after(pending(), TrialBegan(), GatePassed())
    assert state.previous == "0.1.0"
    state = after(begun("0.3.0", state), StepDone(Phase.DOWNLOADING))
    state = after(state, StepDone(Phase.VERIFIED, is_previous_lost=True))
    state = after(state, *(StepDone(s) for s in STEPS[2 : STEPS.index(step)]))
    for ended in (after(state, StepFailed("no room")), after(state, Started("0.2.0"))):
        assert ended.phase is Phase.IDLE
        with pytest.raises(Rejected, match=r"0\.2\.0 is the only release here"):
            apply(ended, RollbackAsked())


def test_a_release_that_was_fallen_back_to_has_no_previous_one_on_two_slots():
    state = after(pending(), TrialBegan(), GatePassed())
    state = after(begun("0.3.0", state), StepDone(Phase.DOWNLOADING))
    state = after(state, StepDone(Phase.VERIFIED, is_previous_lost=True))
    state = after(state, *(StepDone(s) for s in STEPS[2:-1]), TrialBegan(), GateFailed("bad"))
    assert (state.phase, state.current, state.previous) == (Phase.ROLLED_BACK, "0.2.0", "")


def test_a_refused_version_is_offered_again_when_the_operator_allows_it():
    state = after(pending(), TrialBegan(), GateFailed("a driver that is repaired now"))
    with pytest.raises(Rejected, match=r"0\.2\.9 is not refused here; refused: 0\.2\.0"):
        apply(state, Allowed("0.2.9"))
    state = after(state, Allowed("0.2.0"))
    assert state.blacklist == ()
    assert offered("0.2.0", state).available == release("0.2.0")


def test_what_was_rolled_back_by_the_operator_can_be_allowed_as_well():
    state = after(pending(), TrialBegan(), GatePassed(), RollbackAsked())
    state = after(state, *(StepDone(step) for step in STEPS[3:-1]), TrialBegan(), GatePassed())
    assert offered("0.2.0", state).available is None
    assert offered("0.2.0", after(state, Allowed("0.2.0"))).available == release("0.2.0")


def test_gpus_are_counted_before_the_first_restart_and_kept_when_nobody_can_tell():
    state = after(begun(), *(StepDone(step) for step in STEPS[:5]))
    assert after(state, StepDone(Phase.ARMING, gpus=2)).gpus == 2
    again = after(begun(state=UpdateState(current="0.1.0", gpus=1)), *map(StepDone, STEPS[:-1]))
    assert again.gpus == 1


def test_a_state_that_an_older_release_wrote_is_read():
    written = b'{"current":"0.1.0","phase":"blessed","previous":"0.0.9","gpus":2}'
    state = msgspec.json.decode(written, type=UpdateState)
    assert (state.previous, state.is_applying) == ("0.0.9", False)


def test_a_hold_stops_an_update_and_not_a_rollback():
    state = after(pending(), TrialBegan(), GatePassed())
    held = after(offered("0.3.0", state), HoldSet(is_held=True))
    with pytest.raises(Rejected, match="held"):
        apply(held, ApplyAsked())
    assert after(held, RollbackAsked()).phase is Phase.DRAINING
    assert after(held, HoldSet(is_held=False), ApplyAsked()).is_applying


def test_a_release_that_needs_a_newer_one_first_is_not_offered():
    assert why_not(ONE, release("0.4.0", "0.3.0")) == "0.4.0 needs 0.3.0 or later, 0.1.0 runs"
    assert why_not(ONE, release("0.4.0", "0.1.0")) == ""


@pytest.mark.parametrize("step", STEPS[:-1])
def test_an_interrupted_step_leads_back_to_idle_and_can_be_done_again(step):
    state = after(begun(), *(StepDone(s) for s in STEPS[: STEPS.index(step)]))
    assert state.phase is step
    state = after(state, Started("0.1.0"))
    assert (state.phase, state.current) == (Phase.IDLE, "0.1.0")
    assert state.reason == f"interrupted while {step}; apply it again"
    assert after(state, ApplyAsked()).is_applying


@pytest.mark.parametrize("step", STEPS[3:6])
def test_a_node_that_was_drained_for_nothing_serves_again(step):
    state = after(begun(), *(StepDone(s) for s in STEPS[: STEPS.index(step)]))
    state, effects = apply(state, StepFailed("no room"))
    assert effects == (Resume(),)
    assert (state.phase, state.reason, state.blacklist) == (Phase.IDLE, "no room", ())


def test_a_release_that_cannot_work_is_blacklisted_before_any_boot():
    state = after(begun(), StepFailed("calls itself 9", is_release_bad=True))
    assert state.blacklist == (Refused("0.2.0", "calls itself 9"),)


def test_the_slot_that_was_booted_decides_on_an_image():
    assert after(pending(), Started("0.2.0")).phase is Phase.BOOTED
    fell_back = after(pending(), Started("0.1.0"))
    assert (fell_back.phase, fell_back.blacklist[0].version) == (Phase.ROLLED_BACK, "0.2.0")


def test_an_updater_that_is_restarted_before_the_machine_asks_for_the_restart_again():
    state = after(begun(), *(StepDone(step, "boot 1") for step in STEPS[:-1]))
    assert apply(state, Started("0.1.0", "boot 1")) == (state, (Restart(),))
    assert after(state, Started("0.1.0", "boot 2")).phase is Phase.ROLLED_BACK
    assert after(state, Started("0.2.0", "boot 2")).phase is Phase.BOOTED
    # Written by a release that did not keep it.
    assert after(pending(), Started("0.1.0", "")).phase is Phase.ROLLED_BACK


def test_a_start_costs_one_try_whoever_tells_it_and_the_last_one_is_the_last():
    state = pending()
    for number in range(MAX_TRIES):
        for _who in ("judge", "updater"):
            state = after(state, Started("0.2.0", f"boot {number}"))
        assert (state.phase, state.tries_left) == (Phase.BOOTED, MAX_TRIES - 1 - number)
    state, effects = apply(state, Started("0.2.0", "one more"))
    assert effects == (FallBack("0.1.0", "0.2.0"),)
    assert state.blacklist == (Refused("0.2.0", "no verdict after 3 starts"),)


def test_a_release_that_was_armed_when_the_power_was_cut_has_all_its_tries():
    state = after(begun(), *(StepDone(step) for step in STEPS[:5]))
    assert state.phase is Phase.ARMING
    state = after(state, Started("0.2.0", "boot 2"))
    assert (state.phase, state.tries_left) == (Phase.BOOTED, MAX_TRIES - 1)


def test_only_one_update_at_a_time():
    busy = begun()
    for change in (CheckAsked(), ApplyAsked(), RollbackAsked()):
        with pytest.raises(Rejected, match="under way: downloading"):
            apply(busy, change)


def test_the_blacklist_is_bounded_and_keeps_the_newest():
    state = ONE
    for number in range(MAX_BLACKLIST + 5):
        state = after(pending(f"0.2.{number}", state), TrialBegan(), GateFailed("bad"))
    assert len(state.blacklist) == MAX_BLACKLIST
    assert state.blacklist[-1].version == f"0.2.{MAX_BLACKLIST + 4}"


@pytest.mark.parametrize("text", ["1", "1.2", "v1.2.3", "1.2.3\n", "../1.2.3", "1.2.3-beta", ""])
def test_only_one_form_of_version_is_taken(text):
    with pytest.raises(InvalidRequest):
        version_key(text)


def test_versions_are_ordered_as_numbers_and_candidates_come_before():
    ordered = ["0.9.0", "0.10.0-rc.2", "0.10.0-rc.10", "0.10.0", "1.0.0"]
    assert sorted(ordered, key=version_key) == ordered
    assert is_newer("0.0.1", "")


CHANGES = st.one_of(
    st.sampled_from(
        [CheckAsked(), ApplyAsked(), RollbackAsked(), TrialBegan(), GatePassed(), GateFailed("x")]
    ),
    st.builds(HoldSet, st.booleans()),
    st.builds(StepFailed, st.just("y"), st.booleans(), st.booleans()),
    st.builds(StepDone, st.sampled_from(STEPS), is_previous_lost=st.booleans()),
    st.builds(Allowed, st.sampled_from(["0.2.0", "0.3.0"])),
    st.builds(Started, st.sampled_from(["0.1.0", "0.2.0", "0.3.0"])),
    st.builds(
        ReleaseFound,
        st.one_of(st.none(), st.sampled_from(["0.1.0", "0.2.0", "0.3.0"]).map(release)),
    ),
)


@given(st.lists(CHANGES, max_size=60))
def test_whatever_happens_a_blessed_release_is_left_and_only_gates_bless(changes):
    state = ONE
    for change in changes:
        before = state
        try:
            state, effects = apply(state, change)
        except NodeError:
            continue
        if state.current != before.current:
            assert isinstance(change, GatePassed)
            assert state.current == before.candidate.version
        assert state.candidate is not None or state.phase in (*RESTING, Phase.CHECKING)
        assert (state.phase in TRIAL) <= (state.candidate is not None)
        if isinstance(change, GateFailed):
            assert before.candidate.version in {one.version for one in state.blacklist}
        for effect in effects:
            if isinstance(effect, FallBack):
                assert effect.version == state.current
        assert msgspec.json.decode(msgspec.json.encode(state), type=UpdateState) == state
