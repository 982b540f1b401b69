"""Who trains a session, across machines: real processes with caches of their own, really killed and really stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fastdb.errors import FastDBError, SessionBusy, StorageError
from fastdb.runtime import machine
from fastdb.sessions import lease, lease_file, lease_watch
from fastdb.sessions.carried import files_of
from fastdb.sessions.lease_file import FILE, Lease, read
from fastdb.sessions.lease_watch import in_use, refuse_elsewhere
from tests.faultfs.mount import Mount

HOLDER = """
import sys
from pathlib import Path
from fastdb.errors import FastDBError
from fastdb.sessions import lease, lease_watch

session, take_over = Path(sys.argv[1]), sys.argv[2] == "take over"
lease.BEAT, lease.SETTLE, quiet = map(float, sys.argv[3:6])
lease.QUIET = lease_watch.QUIET = quiet

def say(*words):
    print(*words, flush=True)

def tell(line):
    print("told:", line, file=sys.stderr, flush=True)

say("ready")
sys.stdin.readline()
try:
    with lease.held(session, tell, lambda: None, take_over=take_over) as held:
        held.check()
        say("held", *held.said)
        for line in sys.stdin:
            if line == "end\\n":
                break
            try:
                held.check()
                say("ours")
            except FastDBError as error:
                say("lost", error)
except FastDBError as error:
    say("refused", error)
say("ended")
"""


class Machine:
    """A machine: a cache of its own. Its trainers are processes that hold leases and nothing else."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.processes: list[subprocess.Popen[str]] = []

    def begin(
        self,
        session: Path,
        *,
        take_over: bool = False,
        beat: float = 120,
        settle: float = 0.1,
        quiet: float = 420,
        before: list[str] | None = None,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """A process that is about to take the lease and waits for a line."""
        words = [str(session), "take over" if take_over else "", str(beat), str(settle), str(quiet)]
        process = subprocess.Popen(
            [*(before or []), sys.executable, "-c", HOLDER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FASTDB_CACHE": str(self.cache), **environment},
        )
        self.processes.append(process)
        assert hear(process) == "ready"
        return process

    def hold(self, session: Path, **how: Any) -> tuple[subprocess.Popen[str], str]:
        """A process that tries to hold the lease, and what it says of it."""
        process = self.begin(session, **how)
        return process, ask(process, "go")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def ask(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None
    print(word, file=process.stdin, flush=True)
    return hear(process)


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.stderr and process.stderr.read()
    return line


def kill(process: subprocess.Popen[str]) -> None:
    """The machine vanishes; nobody waits for the process, which so stays in the table of processes."""
    os.kill(process.pid, signal.SIGKILL)
    while machine.began(process.pid) is not None:
        time.sleep(0.005)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    (tmp_path / "cup").mkdir()
    return tmp_path / "cup"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    """Gives the machine of a name."""
    made: dict[str, Machine] = {}
    yield lambda name: made.setdefault(name, Machine(tmp_path / f"cache-{name}"))
    for one in made.values():
        one.end()


@pytest.fixture
def other(machines: Callable[[str], Machine]) -> Machine:
    """Another machine than the one the test runs on."""
    return machines("other")


def taken(session: Path, **how: Any) -> lease.Held:
    """The lease, taken by the test's own process."""
    return lease.take(session, lambda line: None, lambda: None, **how)


def there(session: Path) -> Lease:
    found = read(session / FILE)
    assert isinstance(found, Lease), found
    return found


def age(session: Path, **ago: float) -> None:
    """Let the last renewal be so long ago."""
    was = there(session)
    lease_file.write(session, was.model_copy(update={"beat": datetime.now(UTC) - timedelta(**ago)}))


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(SessionBusy) as caught:
        act()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_it_is_taken_renewed_and_given_back(session: Path, other: Machine) -> None:
    holder, said = other.hold(session, beat=0.05)
    assert said == "held"
    first = there(session)
    assert (first.pid, first.term, first.ended) == (holder.pid, 1, None)
    assert (first.owner, first.host) == (machine.user_name(), machine.host_name())
    assert abs((datetime.now(UTC) - first.since).total_seconds()) < 30
    while there(session).beats < 3:
        time.sleep(0.01)
    assert there(session).beat > first.beat
    text = (session / FILE).read_text()
    assert len(text) == lease_file.SIZE
    assert json.loads(text)["what"].startswith("fastdb trains this session")
    assert ask(holder, "check") == "ours"
    assert ask(holder, "end") == "ended"
    assert list(session.iterdir()) == []


def test_another_machine_is_refused_with_who_since_when_and_what_to_do(session: Path, other: Machine) -> None:
    other.hold(session)
    age(session, minutes=3)
    before = (session / FILE).read_bytes()
    line = refusal(lambda: taken(session))
    owner = there(session)
    assert line == (
        f"cup: is being trained by {owner.owner} on {owner.host} since {owner.since:%Y-%m-%d %H:%M} UTC, "
        "last heard of 4 minutes ago. If that machine is gone, run the same command again in 4 minutes; else stop it "
        "there (fastdb stop cup), or take it over: fastdb train cup --take-over"
    )
    assert refusal(lambda: refuse_elsewhere(session, "Then go on.")).endswith("in 4 minutes. Then go on.")
    assert in_use(session) == f"in use on {owner.host} since {owner.since:%Y-%m-%d %H:%M} UTC"
    assert (session / FILE).read_bytes() == before
    assert os.listdir(session) == [FILE]


def test_a_dead_machine_is_waited_for_as_long_as_it_may_be_slow_and_no_longer(session: Path, other: Machine) -> None:
    holder, _ = other.hold(session)
    kill(holder)
    age(session, seconds=lease_watch.QUIET - 20)
    assert "run the same command again in 1 minute;" in refusal(lambda: taken(session))
    age(session, seconds=lease_watch.QUIET + 1)
    assert in_use(session) == ""
    refuse_elsewhere(session)
    held = taken(session)
    assert held.said == (
        f"in use: taken over from {there(session).owner} on {machine.host_name()}, which counts as gone: "
        "last heard of 8 minutes ago",
    )
    assert there(session).term == 2
    held.end()


def test_a_process_of_this_machine_that_died_is_taken_over_at_once(session: Path, machines: Any) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    again, said = here.hold(session)
    assert said == f"held in use: taken over from process {holder.pid} of this machine, which ended without a word"
    assert ask(again, "end") == "ended"
    assert os.listdir(session) == [], "its owner cannot come back, so nobody needs to be told"


def test_a_number_of_a_process_that_another_one_has_now_does_not_hold_it(session: Path, machines: Any) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    was = there(session)
    lease_file.write(session, was.model_copy(update={"pid": os.getpid()}))
    assert here.hold(session)[1].startswith(f"held in use: taken over from process {os.getpid()} of this machine")


def test_two_processes_of_one_machine_that_reach_it_by_two_paths(session: Path, machines: Any) -> None:
    """The lock of a machine goes by path, the lease by what lies there."""
    here = machines("here")
    holder, _ = here.hold(session)
    said = here.hold(session)[1]
    assert said.startswith("refused cup: is being trained by ")
    assert f"in process {holder.pid} of this machine" in said
    assert here.hold(session, take_over=True)[1].endswith("of this machine, as was asked")
    assert ask(holder, "check").startswith("lost ")


@pytest.mark.parametrize("unlike", [{"host": "elsewhere"}, {"boot": "another time"}, {"machine": "0" * 32}])
def test_a_cache_on_a_shared_disk_does_not_make_two_machines_one(
    session: Path, machines: Any, unlike: dict[str, str]
) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    lease_file.write(session, there(session).model_copy(update=unlike))
    assert here.hold(session)[1].startswith("refused cup: is being trained by ")


def test_who_is_taken_over_knows_before_it_writes_and_leaves_the_file_alone(session: Path, machines: Any) -> None:
    holder, _ = machines("one").hold(session)
    assert machines("two").hold(session)[1].startswith("refused ")
    taker, said = machines("two").hold(session, take_over=True)
    assert "as was asked: last heard of 1 minute ago" in said
    assert there(session).term == 2
    line = ask(holder, "check")
    assert line.startswith("lost cup: was taken over by ")
    assert line.endswith("Follow it there; or, when it has stopped there, go on here: fastdb train cup")
    before = (session / FILE).read_bytes()
    assert ask(holder, "end") == "ended"
    assert (session / FILE).read_bytes() == before
    assert ask(taker, "check") == "ours"


def test_who_is_taken_over_knows_without_writing_too(session: Path, other: Machine) -> None:
    lost = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "BEAT", 0.05)
        held = lease.take(session, lambda line: None, lost.set)
        held.check()
        other.hold(session, take_over=True)
        assert lost.wait(10)
    before = (session / FILE).read_bytes()
    assert not held.holds()
    held.end()
    assert (session / FILE).read_bytes() == before


def test_one_that_slept_through_a_whole_training_elsewhere_does_not_go_on(session: Path, machines: Any) -> None:
    sleeper, _ = machines("one").hold(session)
    os.kill(sleeper.pid, signal.SIGSTOP)
    quick, _ = machines("two").hold(session, take_over=True)
    assert ask(quick, "end") == "ended"
    assert there(session).ended is not None
    assert in_use(session) == ""
    os.kill(sleeper.pid, signal.SIGCONT)
    assert ask(sleeper, "check").startswith("lost cup: was taken over")
    # What was left for it hinders nobody.
    again, said = machines("three").hold(session)
    assert (said, there(session).term) == ("held", 3)
    assert ask(again, "end") == "ended"


def test_one_that_slept_for_long_and_finds_nothing_does_not_go_on(session: Path, machines: Any) -> None:
    sleeper, _ = machines("one").hold(session, beat=0.2, quiet=1)
    os.kill(sleeper.pid, signal.SIGSTOP)
    slow, _ = machines("two").hold(session, take_over=True, quiet=1)
    time.sleep(1.3)
    assert ask(slow, "end") == "ended"
    assert os.listdir(session) == [], "it trained for so long that whoever did not see it has slept"
    os.kill(sleeper.pid, signal.SIGCONT)
    assert ask(sleeper, "check").startswith("lost cup: may have been trained elsewhere: its in-use.json could not be")
    assert ask(sleeper, "end") == "ended"
    assert os.listdir(session) == []


def test_a_lease_that_somebody_removed_is_written_again(session: Path, other: Machine) -> None:
    holder, _ = other.hold(session, beat=0.1)
    (session / FILE).unlink()
    assert ask(holder, "check") == "ours"
    deadline = time.monotonic() + 10
    while not (session / FILE).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert there(session).pid == holder.pid


def test_of_two_the_same_one_gives_way_whoever_wrote_last(session: Path, machines: Any) -> None:
    """A machine that did not know yet renews a lease that was taken over: the one that took it stays."""
    holder, _ = machines("one").hold(session)
    old = there(session)
    taker, _ = machines("two").hold(session, take_over=True, beat=0.1)
    lease_file.write(session, old.model_copy(update={"beats": 9}))
    assert ask(taker, "check") == "ours"
    deadline = time.monotonic() + 10
    while there(session).pid != taker.pid:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ask(holder, "check").startswith("lost ")
    assert ask(taker, "check") == "ours"


def test_a_renewal_in_the_moment_it_is_taken_over_does_not_undo_that(session: Path, machines: Any) -> None:
    machines("one").hold(session)
    old = there(session)
    taker = machines("two").begin(session, take_over=True, settle=1)
    assert taker.stdin is not None
    print("go", file=taker.stdin, flush=True)
    while there(session).pid != taker.pid:
        time.sleep(0.001)
    lease_file.write(session, old)
    assert hear(taker).startswith("held ")
    assert there(session).pid == taker.pid


@pytest.mark.parametrize("round_", range(6))
def test_of_three_that_take_it_at_the_same_moment_one_gets_it(session: Path, machines: Any, round_: int) -> None:
    rivals = [machines(name).begin(session, settle=0.5) for name in ("one", "two", "three")]
    for rival in rivals:
        assert rival.stdin is not None
        print("go", file=rival.stdin, flush=True)
    said = [hear(rival) for rival in rivals]
    assert sorted(line.split()[0] for line in said) == ["held", "refused", "refused"], said
    assert there(session).pid == rivals[[line.split()[0] for line in said].index("held")].pid


def test_of_two_that_look_before_either_writes_one_gets_it(session: Path, tmp_path: Path) -> None:
    """The moment itself: both have found the session free, and now both write."""
    one, two = taken(session), None
    mine = there(session)
    rival = mine.model_copy(update={"token": "0" * 32, "machine": "1" * 32})
    lease_file.write(session, rival)
    assert "was taken over by" in refusal(one.check)
    # The other way round: written over by this one, which then finds itself.
    (session / FILE).unlink()
    lease_file.write(session, rival.model_copy(update={"ended": rival.since}))
    two = taken(session)
    two.check()
    one.end()
    two.end()


def test_a_look_again_tells_what_no_clock_can(session: Path, other: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to be renewed it lives, not seen to be renewed for long it does not, whatever it says itself."""
    other.hold(session)
    now = machine.ticking()

    def look(seconds: float) -> bool:
        monkeypatch.setattr(machine, "ticking", lambda: now + seconds)
        return in_use(session) != ""

    def renew(**ago: float) -> None:
        was = there(session)
        lease_file.write(session, was.model_copy(update={"beats": was.beats + 1}))
        age(session, **ago)

    year = 365
    for ago in ({"days": 3 * year}, {"days": -3 * year}, {"days": -9}, {"days": 30 * year}):
        renew(**ago)
        assert look(0), "no clock can be believed, and it was not watched for long"
        assert look(lease_watch.QUIET - 1)
        assert not look(lease_watch.QUIET + 1)
        now += 10 * lease_watch.QUIET
    renew(hours=1)
    assert not look(0), "by its clock it is gone, and nothing speaks against that"
    renew(hours=1)
    assert look(60), "by its clock it is gone, but it was seen to be renewed"
    assert look(60 + lease_watch.QUIET - 1)
    assert not look(60 + lease_watch.QUIET + 1)
    now += 10 * lease_watch.QUIET
    renew(hours=1)
    assert not look(0), "when in that long time it was renewed is not known, so its clock is asked"


def test_a_look_of_another_boot_is_no_look(session: Path, other: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other.hold(session)
    age(session, days=-1)
    now = machine.ticking()
    assert in_use(session)
    monkeypatch.setattr(machine, "ticking", lambda: now + 10 * lease_watch.QUIET)
    monkeypatch.setattr(machine, "boot", lambda: "another")
    assert in_use(session)


def test_a_clock_that_is_set_back_does_not_make_a_lease_look_old(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    held = taken(session)
    held.check()
    before = there(session)
    monkeypatch.setattr(machine, "wall", lambda: datetime(1999, 1, 1, tzinfo=UTC))
    while there(session).beats < before.beats + 3:
        time.sleep(0.01)
    assert timedelta() < there(session).beat - before.since < timedelta(minutes=1)
    held.end()


FAKETIME = shutil.which("faketime")


@pytest.mark.skipif(FAKETIME is None, reason="needs faketime (Debian's package of that name)")
@pytest.mark.parametrize("ours", ["", "+5y", "-20y", "+1h", "-1h"])
@pytest.mark.parametrize("theirs", ["+5y", "-20y", "+1h"])
def test_wrong_clocks_make_neither_two_owners_nor_a_lock_for_good(
    session: Path, machines: Any, ours: str, theirs: str
) -> None:
    """Real processes with clocks that are wrong, on both machines: the one that lives is left alone or stops itself."""

    def clock(by: str) -> dict[str, Any]:
        return {"before": [str(FAKETIME), "-f", by]} if by else {}

    holder, said = machines("one").hold(session, beat=0.1, **clock(theirs))
    assert said == "held"
    rival, said = machines("two").hold(session, **clock(ours))
    owners = [process for process in (holder, rival) if process is holder or said.startswith("held")]
    time.sleep(0.3)
    assert [ask(process, "check") for process in owners].count("ours") == 1
    years_apart = ours[1:] != theirs[1:] and "y" in ours + theirs
    if years_apart or theirs == "+5y":
        assert said.startswith("refused ") or ours == theirs, said
    taker, said = machines("three").hold(session, take_over=True, **clock(ours))
    assert said.startswith("held")
    assert ask(taker, "check") == "ours"
    time.sleep(0.3)
    assert all(ask(process, "check").startswith("lost") for process in owners)


@pytest.mark.skipif(FAKETIME is None, reason="needs faketime (Debian's package of that name)")
@pytest.mark.parametrize("jump", ["+8y", "-8y"])
def test_a_clock_that_jumps_by_years_while_it_holds(session: Path, machines: Any, jump: str, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("+0")
    jumping = {"FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"), "FAKETIME_NO_CACHE": "1"}
    holder, said = machines("one").hold(session, beat=0.1, before=[str(FAKETIME), "-f", "+0"], **jumping)
    assert said == "held"
    (tmp_path / "clock").write_text(jump)
    beats = there(session).beats
    while there(session).beats < beats + 3:
        time.sleep(0.01)
    assert ask(holder, "check") == "ours"
    assert machines("two").hold(session)[1].startswith("refused ")
    assert ask(holder, "check") == "ours"
    kill(holder)
    deadline = time.monotonic() + 20
    while not (said := machines("two").hold(session, quiet=1)[1]).startswith("held"):
        assert time.monotonic() < deadline, said
