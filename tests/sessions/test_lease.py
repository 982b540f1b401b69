"""Leases across machines, with real processes that are killed or stopped."""

from __future__ import annotations

import json
import os
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

from fastdb.console import sentence
from fastdb.errors import SessionBusy, StorageError
from fastdb.runtime import machine
from fastdb.sessions import lease, lease_file, lease_status
from fastdb.sessions.lease_file import FILE, Lease, read
from fastdb.sessions.lease_status import in_use, refuse_elsewhere
from fastdb.sharing.transfer import files_of
from tests.faultfs.mount import Mount
from tests.requires import faketime_library

HOLDER = """
import sys
from pathlib import Path
from fastdb.errors import FastDBError
from fastdb.console import sentence
from fastdb.sessions import lease, lease_status

session, take_over = Path(sys.argv[1]), sys.argv[2] == "take over"
lease.BEAT, lease.SETTLE, quiet = map(float, sys.argv[3:6])
lease.QUIET = lease_status.QUIET = quiet

def say(*words):
    print(*words, flush=True)

def warn(note):
    print("warning:", sentence(note), file=sys.stderr, flush=True)

say("ready")
sys.stdin.readline()
try:
    with lease.take(session, warn, lambda: None, take_over=take_over) as held:
        held.check()
        say("held", *map(sentence, held.notes))
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
    return lease.take(session, lambda note: None, lambda: None, **how)


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


def test_a_lease_is_taken_renewed_and_returned(session: Path, other: Machine) -> None:
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
        f"cup is being trained by {owner.owner} on {owner.host} since {owner.since:%Y-%m-%d %H:%M} UTC; "
        "its lease was renewed 4 minutes ago. If that machine is gone, run the same command again in 4 minutes; "
        "otherwise stop it there (fastdb stop cup), or take it over: fastdb train cup --take-over"
    )
    assert refusal(lambda: refuse_elsewhere(session, "Then go on.")).endswith("in 4 minutes. Then go on.")
    assert in_use(session) == f"in use on {owner.host} since {owner.since:%Y-%m-%d %H:%M} UTC"
    assert (session / FILE).read_bytes() == before
    assert os.listdir(session) == [FILE]


def test_a_dead_machine_is_waited_for_as_long_as_it_may_be_slow_and_no_longer(session: Path, other: Machine) -> None:
    holder, _ = other.hold(session)
    kill(holder)
    age(session, seconds=lease_status.QUIET - 20)
    assert "run the same command again in 1 minute;" in refusal(lambda: taken(session))
    age(session, seconds=lease_status.QUIET + 1)
    assert in_use(session) == ""
    refuse_elsewhere(session)
    held = taken(session)
    assert [sentence(note) for note in held.notes] == [
        f"Took the session over from {there(session).owner} on {machine.host_name()}, because it counts as gone; "
        "its lease was renewed 8 minutes ago"
    ]
    assert there(session).term == 2
    held.end()


def test_a_process_of_this_machine_that_died_is_taken_over_at_once(session: Path, machines: Any) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    again, said = here.hold(session)
    assert said == (
        f"held The last trainer (process {holder.pid}) crashed or was killed; resuming from its last checkpoint"
    )
    assert ask(again, "end") == "ended"
    assert os.listdir(session) == [], "its owner cannot come back, so nobody needs to be told"


def test_a_number_of_a_process_that_another_one_has_now_does_not_hold_it(session: Path, machines: Any) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    was = there(session)
    lease_file.write(session, was.model_copy(update={"pid": os.getpid()}))
    assert here.hold(session)[1].startswith(f"held The last trainer (process {os.getpid()}) crashed")


def test_two_processes_of_one_machine_that_reach_it_by_two_paths(session: Path, machines: Any) -> None:
    """The lock of a machine goes by path, the lease by what lies there."""
    here = machines("here")
    holder, _ = here.hold(session)
    said = here.hold(session)[1]
    assert said.startswith("refused cup is being trained by ")
    assert f"its trainer is process {holder.pid} of this machine" in said
    assert here.hold(session, take_over=True)[1].endswith("of this machine, as requested")
    assert ask(holder, "check").startswith("lost ")


@pytest.mark.parametrize("unlike", [{"host": "elsewhere"}, {"boot": "another time"}, {"machine": "0" * 32}])
def test_a_cache_on_a_shared_disk_does_not_make_two_machines_one(
    session: Path, machines: Any, unlike: dict[str, str]
) -> None:
    here = machines("here")
    holder, _ = here.hold(session)
    kill(holder)
    lease_file.write(session, there(session).model_copy(update=unlike))
    assert here.hold(session)[1].startswith("refused cup is being trained by ")


def test_who_is_taken_over_knows_before_it_writes_and_leaves_the_file_alone(session: Path, machines: Any) -> None:
    holder, _ = machines("one").hold(session)
    assert machines("two").hold(session)[1].startswith("refused ")
    taker, said = machines("two").hold(session, take_over=True)
    assert "as requested; its lease was renewed 1 minute ago" in said
    assert there(session).term == 2
    line = ask(holder, "check")
    assert line.startswith("lost cup was taken over by ")
    assert line.endswith("after it has stopped there, resume here with: fastdb train cup")
    before = (session / FILE).read_bytes()
    assert ask(holder, "end") == "ended"
    assert (session / FILE).read_bytes() == before
    assert ask(taker, "check") == "ours"


def test_one_that_ends_without_knowing_leaves_the_lease_of_the_other(session: Path, machines: Any) -> None:
    holder, _ = machines("one").hold(session)
    machines("two").hold(session, take_over=True)
    before = (session / FILE).read_bytes()
    assert ask(holder, "end") == "ended"
    assert (session / FILE).read_bytes() == before


def test_who_is_taken_over_knows_without_writing_too(session: Path, other: Machine) -> None:
    lost = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "BEAT", 0.05)
        held = lease.take(session, lambda note: None, lost.set)
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
    assert ask(sleeper, "check").startswith("lost cup was taken over")
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
    assert ask(sleeper, "check").startswith("lost cup may have been trained on another machine: in-use.json could")
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


@pytest.mark.parametrize("rank", ["0", "f"])
def test_of_two_that_look_before_either_writes_one_gets_it(session: Path, rank: str) -> None:
    """The moment itself: both have found the session free, and now both write."""
    one, two = taken(session), None
    mine = there(session)
    rival = mine.model_copy(update={"token": rank * 32, "machine": "1" * 32})
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
        assert look(lease_status.QUIET - 1)
        assert not look(lease_status.QUIET + 1)
        now += 10 * lease_status.QUIET
    renew(hours=1)
    assert not look(0), "by its clock it is gone, and nothing speaks against that"
    renew(hours=1)
    assert look(60), "by its clock it is gone, but it was seen to be renewed"
    assert look(60 + lease_status.QUIET - 1)
    assert not look(60 + lease_status.QUIET + 1)
    now += 10 * lease_status.QUIET
    renew(hours=1)
    assert not look(0), "when in that long time it was renewed is not known, so its clock is asked"


def test_a_look_of_another_boot_is_no_look(session: Path, other: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    other.hold(session)
    age(session, days=-1)
    now = machine.ticking()
    assert in_use(session)
    monkeypatch.setattr(machine, "ticking", lambda: now + 10 * lease_status.QUIET)
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


def clock(by: str) -> dict[str, str]:
    """The environment of a process whose clock is wrong; the one that only ticks is not, as in life."""
    if not faketime_library():
        pytest.skip("needs faketime (Debian's package of that name)")
    return {"LD_PRELOAD": faketime_library(), "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"} if by else {}


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("+5y", "", "refused"),
        ("+5y", "-20y", "refused"),
        ("-20y", "", "refused"),
        ("-20y", "-20y", "refused"),
        ("", "+5y", "refused"),
        ("", "-1h", "refused"),
        ("+1h", "", "refused"),
        # The one case in which a trainer that lives is taken over unasked. It stops.
        ("", "+1h", "held"),
    ],
)
def test_wrong_clocks_make_neither_two_owners_nor_a_lock_for_good(
    session: Path, machines: Any, theirs: str, ours: str, expected: str
) -> None:
    holder, said = machines("one").hold(session, beat=0.1, **clock(theirs))
    assert said == "held"
    rival, said = machines("two").hold(session, **clock(ours))
    assert said.split()[0] == expected
    owners = [holder, rival] if expected == "held" else [holder]
    assert [ask(process, "check").split()[0] for process in reversed(owners)] == ["ours", "lost"][: len(owners)]
    taker, said = machines("three").hold(session, take_over=True, **clock(ours))
    assert said.startswith("held")
    assert ask(taker, "check") == "ours"
    assert all(ask(process, "check").startswith("lost") for process in owners)


@pytest.mark.parametrize("jump", ["+8y", "-8y"])
def test_a_clock_that_jumps_by_years_while_it_holds(session: Path, machines: Any, jump: str, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("+0")
    jumping = {"FAKETIME_TIMESTAMP_FILE": str(tmp_path / "clock"), "FAKETIME_NO_CACHE": "1"}
    jumping |= {name: value for name, value in clock("+0").items() if name != "FAKETIME"}
    holder, said = machines("one").hold(session, beat=0.1, **jumping)
    assert said == "held"
    (tmp_path / "clock").write_text(jump)
    was = there(session)
    while there(session).beats < was.beats + 3:
        time.sleep(0.01)
    ahead = there(session).beat - was.beat
    assert ahead > timedelta(days=2900) if jump[0] == "+" else timedelta() < ahead < timedelta(minutes=1)
    assert machines("two").hold(session)[1].startswith("refused ")
    assert ask(holder, "check") == "ours"
    kill(holder)
    if jump[0] == "-":
        age(session, days=8 * 365)
    deadline = time.monotonic() + 20
    while not (said := machines("two").hold(session, quiet=1)[1]).startswith("held"):
        assert time.monotonic() < deadline, said


SILENT: list[tuple[str, Callable[[Path], Any]]] = [
    ("it is empty", lambda path: path.write_bytes(b"")),
    ("it is empty", lambda path: path.write_bytes(b" \n" * 500)),
    ("it is damaged", lambda path: path.write_bytes(path.read_bytes()[:300])),
    ("it is damaged", lambda path: path.write_bytes(os.urandom(1000))),
    ("it is damaged", lambda path: path.write_bytes(b"null")),
    ("it is damaged", lambda path: path.write_bytes(b"[" * 60_000)),
    ("it is damaged", lambda path: path.write_bytes(b"{}" + b" " * 100_000)),
    ("it is damaged", lambda path: path.write_text('{"name": "somebody\'s own", "term": 3}')),
    ("it is damaged", lambda path: path.write_text(path.read_text().replace('"term": 1', '"term": 1e400'))),
    ("it is damaged", lambda path: path.write_text(path.read_text().replace('"term": 1', f'"term": {"9" * 5000}'))),
    ("it is damaged", lambda path: path.write_text(path.read_text().replace('"pid": ', '"pid": -'))),
    ("it is damaged", lambda path: path.write_text(path.read_text().replace("Z", ""))),
    ("it is not a regular file", lambda path: (path.unlink(), path.mkdir())),
    ("it is not a regular file", lambda path: (path.unlink(), os.mkfifo(path))),
    ("it is a link", lambda path: (path.unlink(), path.symlink_to(path.with_name("own.txt")))),
]


@pytest.mark.parametrize("number", range(len(SILENT)))
def test_what_is_no_lease_is_moved_away_and_said(session: Path, number: int) -> None:
    reason, spoil = SILENT[number]
    (session / "own.txt").write_text("a person's own")
    taken(session).end()
    held = taken(session)
    kept = held.lease
    held.end()
    lease_file.write(session, kept)
    spoil(session / FILE)
    listed = (session / FILE).lstat()
    assert in_use(session) == ""
    refuse_elsewhere(session)
    held = taken(session)
    [note] = held.notes
    assert sentence(note).startswith(f"Moved an invalid lease to in-use.set-aside-1: {reason}")
    assert (session / "in-use.set-aside-1").lstat().st_ino == listed.st_ino
    held.check()
    assert there(session).term > kept.term
    held.end()
    # Whose it was may live, and has to find this one, even if it was quick.
    was = there(session)
    assert was.ended is not None
    lease_file.write(session, was.model_copy(update={"ended": datetime.now(UTC) - timedelta(hours=1)}))
    taken(session).end()
    assert sorted(os.listdir(session)) == ["in-use.set-aside-1", "own.txt"]
    assert (session / "own.txt").read_text() == "a person's own"
    assert files_of(session)[0] == ["own.txt"]


def test_a_file_that_may_not_be_read_is_moved_away_too(session: Path, machines: Any, forbidden: list[str]) -> None:
    taken(session)
    (session / FILE).chmod(0)
    said = machines("two").hold(session, before=forbidden)[1]
    assert said.startswith("held Moved an invalid lease to in-use.set-aside-1: it cannot be read")


def test_words_of_a_stranger_move_no_cursor(session: Path, other: Machine) -> None:
    other.hold(session)
    lease_file.write(session, there(session).model_copy(update={"host": "\x1b[2J\nevil\u202e" * 20, "owner": ""}))
    line = refusal(lambda: taken(session))
    assert "? on ?[2J?evil?" in line
    assert len(line) < 500
    assert in_use(session).isprintable()


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_moments_at_the_ends_of_time_are_shown(session: Path, other: Machine, moment: str) -> None:
    other.hold(session)
    text = there(session).model_dump_json()
    was = json.loads(text) | {"since": moment, "beat": moment}
    (session / FILE).write_text(json.dumps(was))
    assert "is being trained by" in refusal(lambda: taken(session))


def test_a_twin_of_a_machine_that_lives_is_heeded_and_one_of_a_dead_one_removed(session: Path, other: Machine) -> None:
    """What Google Drive shows where two machines made the file at once."""
    holder, _ = other.hold(session)
    (session / FILE).rename(session / "in-use (1).json")
    assert "is being trained by" in refusal(lambda: taken(session))
    kill(holder)
    was = there_in(session / "in-use (1).json")
    old = was.model_copy(update={"beat": datetime.now(UTC) - timedelta(hours=1)})
    (session / "in-use (1).json").write_text(old.model_dump_json())
    held = taken(session)
    assert os.listdir(session) == [FILE]
    # One that comes up later and counts less changes nothing, one that counts more does, in the same way on both.
    rivals = {rank: held.lease.model_copy(update={"token": rank * 32}) for rank in "0f"}
    (session / "in-use (2).json").write_text(rivals["f"].model_dump_json())
    assert held._stronger() is None
    (session / "in-use (2).json").write_text(rivals["0"].model_dump_json())
    assert held._stronger() == rivals["0"]
    held.end()


def there_in(path: Path) -> Lease:
    found = read(path)
    assert isinstance(found, Lease)
    return found


def test_a_folder_that_may_not_be_written_is_said(session: Path, machines: Any, forbidden: list[str]) -> None:
    session.chmod(0o555)
    said = machines("one").hold(session, before=forbidden)[1]
    assert said.startswith(f"refused {session / FILE}: permission denied.")


def test_a_folder_that_is_gone_is_said(session: Path) -> None:
    session.rmdir()
    with pytest.raises(StorageError, match="the session's folder does not exist"):
        taken(session)
    assert in_use(session) == ""


def test_a_file_of_another_user_in_a_folder_of_both_is_written(
    session: Path, machines: Any, forbidden: list[str]
) -> None:
    machines("one").hold(session)
    (session / FILE).chmod(0o444)
    taker, said = machines("two").hold(session, take_over=True, before=forbidden)
    assert said.startswith("held ")
    assert there(session).pid == taker.pid


@pytest.mark.skipif(not hasattr(os, "getxattr"), reason="needs Linux")
def test_on_a_drive_with_old_listings_that_goes_and_comes_back(tmp_path: Path, machines: Any) -> None:
    with Mount(tmp_path) as drive:
        session = drive.path / "cup"
        session.mkdir()
        drive.stale(400)
        os.listdir(session)
        holder, said = machines("one").hold(session, beat=0.1)
        assert said == "held"
        assert os.listdir(session) == [], "the listing is old, and nobody asks it for this file"
        assert machines("two").hold(session)[1].startswith("refused cup is being trained by ")
        drive.disconnect()
        time.sleep(0.5)
        assert ask(holder, "check") == "ours", "a drive that is away for a while ends no training"
        said = machines("two").hold(session)[1]
        assert said.startswith("refused ")
        assert "the disk does not answer" in said
        drive.heal()
        beats = there(session).beats
        while there(session).beats < beats + 2:
            time.sleep(0.01)
        drive.room(0)
        time.sleep(0.3)
        assert ask(holder, "check") == "ours"
        drive.heal()
        taker, said = machines("two").hold(session, take_over=True)
        assert said.startswith("held ")
        assert ask(holder, "check").startswith("lost ")
        assert ask(taker, "end") == "ended"
        assert there_in(drive.disk / "cup" / FILE).ended is not None
        assert ask(holder, "end") == "ended"
        assert holder.stderr is not None
        holder.wait()
        told = holder.stderr.read().splitlines()
        assert len(told) == 1, told
        assert told[0].startswith(f"warning: Could not renew {FILE} (")


def test_the_number_of_a_machine_stays_and_is_made_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDB_CACHE", str(tmp_path / "cache"))
    code = "from fastdb.runtime.machine import machine_number; print(machine_number())"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    numbers = {process.communicate()[0].strip() for process in started}
    assert numbers == {machine.machine_number()}
    (tmp_path / "cache" / "work" / "this-machine").write_text("")
    assert len(machine.machine_number()) == 32
    assert machine.machine_number() not in numbers
