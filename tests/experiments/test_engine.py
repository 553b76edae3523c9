"""The engine of experiments: what is made, resumed, reused, refused and waited for, here, in processes and in jobs."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import sga.experiments.engine
from sga.errors import UserError
from sga.experiments.cluster import Cluster
from sga.experiments.engine import InThisProcess, Job, Pace, Processes, run, terminable, why_ended
from sga.experiments.fit import end_with_parent
from sga.experiments.task import Outcome, Task, begin, check_folder, end, held, outcome, read_state, with_needs
from sga.files import read_yaml, write_json
from sga.runs.lock import write_lock


class Pretended(Processes):
    """Notes what it was asked to make; a job ends when `finish` says how, by default at once and well."""

    def __init__(self, workers: int = 1, finish: Callable[[Task], Outcome | None] = lambda task: Outcome()) -> None:
        super().__init__(workers)
        self.finish = finish
        self.began: list[str] = []
        self.most = 0
        self.jobs: set[str] = set()

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        begin(task, folder)
        self.began.append(task.name)
        self.jobs.add(task.name)
        self.most = max(self.most, len(self.jobs))
        return PretendedJob(self, task, folder, lock.pop_all())


class PretendedJob:
    def __init__(self, pool: Pretended, task: Task, folder: Path, lock: ExitStack) -> None:
        self.pool, self.task, self.folder, self.lock = pool, task, folder, lock

    def poll(self) -> Outcome | None:
        found = self.pool.finish(self.task)
        if found is not None:
            self.stop()
            end(self.task, self.folder, found, 1000)
        return found

    def stop(self) -> None:
        self.pool.jobs.discard(self.task.name)
        self.lock.close()


def chain() -> tuple[Task, Task, Task]:
    """A model and two runs that start from it."""
    target = Task("models/target", {"a": 1})
    runs = [Task(f"trials/{n}", {"seed": n, "model": {"from": "?"}}, {"model.from": target}) for n in (1, 2)]
    return target, runs[0], runs[1]


def test_the_key_is_of_configuration_and_needs() -> None:
    target, one, two = chain()
    assert len({target.key, one.key, two.key}) == 3
    assert one.key == Task("elsewhere", one.config, {"model.from": Task("other", {"a": 1})}).key, "not of places"
    assert one.key != Task("trials/1", one.config, {"model.from": Task("models/target", {"a": 2})}).key
    assert Task("x", {"a": 1}, key="given").key == "given"
    assert list(with_needs([two, one])) == [target.key, two.key, one.key]


def test_needs_come_first_and_their_folders_are_set(tmp_path: Path) -> None:
    _, one, two = chain()
    pool = Pretended(workers=2)
    assert set(run([one, two], tmp_path, pool).values()) == {Outcome()}
    assert pool.began == ["models/target", "trials/1", "trials/2"]
    config = read_yaml(tmp_path / "trials/1" / "fit.yaml")
    assert config == {
        "seed": 1,
        "model": {"from": str(tmp_path / "models/target")},
        "run": {"folder": str(tmp_path / one.name)},
    }
    state = read_state(tmp_path / one.name)
    assert (state["key"], state["state"], state["attempts"], state["peak_memory_bytes"]) == (
        one.key,
        "finished",
        1,
        1000,
    )


def test_the_places_of_needs_do_not_depend_on_how_the_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder whose configuration has another place is refused, and jobs of a cluster start elsewhere."""
    _, one, _ = chain()
    monkeypatch.chdir(tmp_path)
    assert one.full_config(Path("mine")) == one.full_config(tmp_path / "mine")


def test_a_run_that_was_begun_with_a_relative_place_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sga.cli import _differences

    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not _differences("model", {"from": "models"}, {"from": str(tmp_path / "models")})
    assert _differences("model", {"from": "models"}, {"from": str(tmp_path / "others")})
    assert _differences("model", {"text": "word " * 2000}, {"text": "words " * 2000})
    assert _differences("model", {"from": "gone"}, {"from": str(tmp_path / "models")})


def test_no_more_run_at_a_time_than_there_are_workers(tmp_path: Path) -> None:
    polls: dict[str, int] = {}

    def third(task: Task) -> Outcome | None:
        polls[task.name] = polls.get(task.name, 0) + 1
        return Outcome() if polls[task.name] == 3 else None

    pool = Pretended(3, third)
    assert len(run([Task(f"t{n}", {"n": n}) for n in range(7)], tmp_path, pool)) == 7
    assert pool.most == 3


def test_jobs_are_asked_as_often_as_their_pool_says(tmp_path: Path) -> None:
    """Each look at a job of a cluster goes to a shared file system."""
    asked: list[float] = []

    def third(task: Task) -> Outcome | None:
        asked.append(time.monotonic())
        return Outcome() if len(asked) == 3 else None

    pool = Pretended(finish=third)
    pool.pause = 0.3
    run([Task("one", {})], tmp_path, pool)
    assert min(b - a for a, b in itertools.pairwise(asked)) > 0.25


def test_what_needs_a_failed_task_is_not_made_and_the_rest_is(tmp_path: Path) -> None:
    target, one, _ = chain()
    other = Task("other", {"b": 1})
    found = run(
        [one, other], tmp_path, Pretended(finish=lambda task: Outcome("no", 3) if task == target else Outcome())
    )
    assert found == {target.key: Outcome("no", 3), other.key: Outcome()}
    assert outcome(target, tmp_path) == Outcome("no", 3)
    again = Pretended()
    assert run([one, other], tmp_path, again) == found and not again.began, "a failure stays one"
    assert len(run([one, other], tmp_path, again, retry=True)) == 3
    assert again.began == ["models/target", "trials/1"] and read_state(tmp_path / target.name)["attempts"] == 2


def test_a_folder_whose_first_state_was_being_written_when_it_was_killed_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".task.json.b8f94104").write_text('{"key"', encoding="utf-8")
    check_folder(Task("one", {}), tmp_path, replace=False)
    (tmp_path / "one" / "notes.txt").touch()
    with pytest.raises(UserError, match="one was not made by this command"):
        check_folder(Task("one", {}), tmp_path, replace=False)


def test_folders_of_something_else_are_refused_before_anything_runs(tmp_path: Path) -> None:
    target, one, _ = chain()
    pool = Pretended()
    write_json(tmp_path / one.name / "own.json", {})
    with pytest.raises(UserError, match=r"trials/1 was not made by this command: choose another --folder"):
        run([one], tmp_path, pool, replace=True)
    write_json(tmp_path / one.name / "task.json", {"key": "another", "state": "finished"})
    with pytest.raises(UserError, match=r"trials/1 holds a run of another configuration: choose another --folder"):
        run([one], tmp_path, pool)
    assert not pool.began
    (tmp_path / one.name / "rows.jsonl").write_text("", encoding="utf-8")
    run([one], tmp_path, pool, replace=True)
    assert pool.began == [target.name, one.name] and not (tmp_path / one.name / "rows.jsonl").exists()


def test_states_of_earlier_versions_are_read(tmp_path: Path) -> None:
    task = Task("one", {})
    for name, state, expected in (
        ("trial.json", {"key": task.key, "state": "finished"}, Outcome()),
        ("trial.json", {"key": task.key, "state": "failed", "reason": "no"}, Outcome("no", 1)),
        ("trial.json", {"key": task.key, "state": "started"}, None),
        ("request.json", {"key": task.key, "finished": True}, Outcome()),
        ("step.json", {"key": task.key, "finished": False}, None),
        ("task.json", {"key": "another", "state": "finished"}, None),
    ):
        write_json(tmp_path / "one" / name, state)
        assert outcome(task, tmp_path) == expected
        (tmp_path / "one" / name).unlink()


def test_tasks_that_become_known_later_are_made_when_there_is_room(tmp_path: Path) -> None:
    first, second = Task("a", {"n": 1}), Task("b", {"n": 2})
    asked: list[int] = []

    def tasks(room: int) -> list[Task]:
        asked.append(room)
        return [first, second] if outcome(first, tmp_path) else [first]

    pool = Pretended(workers=2)
    assert len(run(tasks, tmp_path, pool)) == 2
    assert asked[:2] == [0, 1], "one place was left beside the first"
    assert pool.began == ["a", "b"]


# ---- several commands -----------------------------------------------------------------------------------------------


@contextmanager
def meanwhile(lock: Any, seconds: float, at_the_end: Callable[[], object] = lambda: None) -> Iterator[list[float]]:
    """Holds a lock in another thread while the block goes on; the time at which it was given back."""
    has, ended = threading.Event(), list[float]()

    def holder() -> None:
        with lock:
            has.set()
            time.sleep(seconds)
            ended.append(time.monotonic())  # first: its state may be read before its lock is given back
            at_the_end()

    thread = threading.Thread(target=holder)
    thread.start()
    assert has.wait(10)
    yield ended
    thread.join()


def test_in_this_process_nothing_of_a_run_is_in_memory_when_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer, module and optimiser refer to each other: 1.6 GB of a model of 135 M weights stayed to the end."""
    left: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    class Module:
        def __init__(self) -> None:
            self.trainer = self

    def verb(arguments: list[str]) -> None:
        alive.extend(one() is not None for one in left)
        left.append(weakref.ref(Module()))

    monkeypatch.setattr("sga.cli.run_verb", verb)
    _, one, _ = chain()
    gc.disable()
    try:
        run([one], tmp_path, InThisProcess())
    finally:
        gc.enable()
    assert alive == [False]
    assert left[1]() is None


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sga.experiments.engine, "POLL", 0.05)
    monkeypatch.setattr("sga.runs.lock.PATIENCE", 0.05)


def test_what_another_command_makes_is_left_out_and_waited_for(fast: None, tmp_path: Path, capsys: Any) -> None:
    one, two = Task("one", {"n": 1}), Task("two", {"n": 2})
    pool = Pretended()
    begin(one, tmp_path)
    with meanwhile(held(one, tmp_path), 1.0, lambda: end(one, tmp_path, Outcome(), 0)) as ended:
        found = run([one, two], tmp_path, pool)
        assert ended
    assert found == {one.key: Outcome(), two.key: Outcome()} and pool.began == ["two"]
    said = capsys.readouterr().out
    assert said.count("waiting: ") == 1 and f"is being written by process {os.getpid()}" in said
    assert "one: done" in said and "two: done" in said


def test_what_another_command_leaves_unfinished_is_taken_over(fast: None, tmp_path: Path) -> None:
    one = Task("one", {"n": 1})
    pool = Pretended()
    begin(one, tmp_path)
    with meanwhile(held(one, tmp_path), 0.5):
        assert run([one], tmp_path, pool) == {one.key: Outcome()}
    assert pool.began == ["one"] and read_state(tmp_path / "one")["attempts"] == 2


def test_a_run_that_outlived_its_command_is_waited_for(fast: None, tmp_path: Path) -> None:
    one = Task("one", {"n": 1})
    pool = Pretended(finish=lambda task: Outcome())
    with meanwhile(write_lock(tmp_path / "one"), 0.5) as ended:
        run([one], tmp_path, pool)
        assert ended and pool.began == ["one"]


def test_what_another_command_finished_meanwhile_is_not_deleted(fast: None, tmp_path: Path) -> None:
    """It makes another configuration in the same folder, which was not there when this one first looked."""
    mine, other = Task("one", {"n": 1}), Task("one", {"n": 2})

    def make() -> None:
        begin(other, tmp_path)
        end(other, tmp_path, Outcome(), 0)

    pool = Pretended()
    with (
        meanwhile(held(mine, tmp_path), 0.5, make),
        pytest.raises(UserError, match=r"one holds a run of another configuration"),
    ):
        run([mine], tmp_path, pool)
    assert not pool.began and outcome(other, tmp_path) == Outcome()


@pytest.mark.parametrize("files", [[], ["half-written.tmp"]])
def test_a_run_that_another_command_is_just_beginning_is_waited_for(
    files: list[str], fast: None, tmp_path: Path
) -> None:
    """Its folder is there, and its state not yet."""
    one = Task("one", {"n": 1})
    pool = Pretended()

    def make() -> None:
        begin(one, tmp_path)
        end(one, tmp_path, Outcome(), 0)

    (tmp_path / "one").mkdir()
    for name in files:
        (tmp_path / "one" / name).write_text("", encoding="utf-8")
    with meanwhile(held(one, tmp_path), 0.5, make):
        assert run([one], tmp_path, pool) == {one.key: Outcome()}
    assert not pool.began


def test_two_commands_make_each_task_once(tmp_path: Path) -> None:
    """Processes with a lock each, eight tasks of 50 ms."""
    program = """
import sys, time
from pathlib import Path
import sga.experiments.engine as engine
from sga.experiments.task import Outcome, Task, begin, end

engine.POLL = 0.05
class Slow(engine.Processes):
    def start(self, task, folder, lock):
        begin(task, folder)
        with open(folder / "made", "a") as file:
            file.write(task.name + "\\n")
        time.sleep(0.05)
        end(task, folder, Outcome(), 0)
        return engine._Ended(Outcome())

engine.run([Task(f"t{n}", {"n": n}) for n in range(8)], Path(sys.argv[1]), Slow())
"""
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sorted((tmp_path / "made").read_text().split()) == [f"t{n}" for n in range(8)]


# ---- processes ------------------------------------------------------------------------------------------------------


def test_in_this_process_a_run_that_raises_ends_them_all_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, one, _ = chain()
    ran: list[list[str]] = []

    def verb(arguments: list[str]) -> None:
        ran.append(arguments)
        if len(ran) == 2:
            raise UserError("group_size is 0")

    monkeypatch.setattr("sga.cli.run_verb", verb)
    with pytest.raises(UserError, match="group_size is 0"):
        run([one], tmp_path, InThisProcess())
    assert ran[1] == ["fit", "--config", str(tmp_path / one.name / "fit.yaml"), "--ckpt_path", "last"]
    assert read_state(tmp_path / target.name)["state"] == "finished"
    assert read_state(tmp_path / one.name)["state"] == "started"
    capsys.readouterr()
    assert run([one], tmp_path, InThisProcess()) == {target.key: Outcome(), one.key: Outcome()}
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] models/target: reused, it is finished",
        "[2/2] trials/1: going on where it stopped",
    ]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces `sga fit` by a program."""

    def replace(program: str) -> None:
        real = subprocess.Popen

        def start(arguments: list[str], **options: Any) -> Any:
            assert arguments[1:3] == ["-m", "sga.experiments.fit"]
            listening = f"from sga.experiments.fit import end_with_parent; end_with_parent()\n{program}"
            return real([sys.executable, "-c", listening, *arguments[3:]], **options)

        monkeypatch.setattr(sga.experiments.engine.subprocess, "Popen", start)

    return replace


def test_each_task_is_a_process_with_its_log_and_its_gpu(
    command: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], sys.argv[1:])")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sga.experiments.engine, "_cores", lambda: 6)
    tasks = [Task(f"t{n}", {"n": n}) for n in range(3)]
    run(tasks, tmp_path, Processes(3, ["4", "7"]))
    logs = [(tmp_path / task.name / "fit.log").read_text(encoding="utf-8").split(maxsplit=2) for task in tasks]
    assert [log[:2] for log in logs] == [["4", "2"], ["7", "2"], ["4", "2"]]
    assert logs[0][2].strip() == str(["fit", "--config", str(tmp_path / "t0" / "fit.yaml"), "--ckpt_path", "last"])
    assert all(read_state(tmp_path / task.name)["peak_memory_bytes"] > 1e6 for task in tasks)


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("", Outcome("its folder is gone", 1)),
        ("exit(1)", Outcome("its folder is gone", 1)),
        ("os.kill(os.getpid(), 9)", Outcome("its folder is gone", 137)),
    ],
)
def test_a_folder_that_is_taken_away_costs_its_own_run_alone(
    program: str, found: Outcome, command: Callable[[str], None], tmp_path: Path
) -> None:
    gone, other = Task("gone", {"n": 1}), Task("other", {"n": 2})
    place = str(tmp_path / "gone")
    command(f"import os, shutil, sys\nif 'gone' in sys.argv[3].split('/'):\n shutil.rmtree({place!r})\n {program}")
    assert run([gone, other], tmp_path, Processes(2)) == {gone.key: found, other.key: Outcome()}
    assert not (tmp_path / "gone").exists() and outcome(other, tmp_path) == Outcome()


@pytest.mark.parametrize(
    ("program", "found", "state"),
    [
        ("print('sga: error: group_size is 0'); exit(2)", Outcome("group_size is 0 (exit code 2)", 2), "failed"),
        ("import os; os.kill(os.getpid(), 9)", Outcome("killed by SIGKILL (out of memory?)", 137), "failed"),
        ("import os; os.kill(os.getpid(), 15)", Outcome("killed by SIGTERM", 143), "started"),
        ("print('stopped'); exit(130)", Outcome("stopped (exit code 130)", 130), "started"),
    ],
)
def test_how_a_process_ends_is_noted(
    program: str, found: Outcome, state: str, command: Callable[[str], None], tmp_path: Path
) -> None:
    """Stopped from outside it is as it was begun, and the next command goes on with it."""
    command(program)
    task = Task("one", {}, keep_weights=False)
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "one" / "task.json", {"key": task.key, "state": "started"})
    assert run([task], tmp_path) == {task.key: found}
    assert read_state(tmp_path / "one")["state"] == state
    assert (tmp_path / "one" / "checkpoints").exists() == (state == "started")


def test_an_interrupt_ends_the_runs_and_gives_their_locks_back(command: Callable[[str], None], tmp_path: Path) -> None:
    command("import time; print('here', flush=True); time.sleep(60)")
    task = Task("one", {})

    def interrupt() -> None:
        wait_for(tmp_path / "one" / "fit.log", "here")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with terminable(), pytest.raises(KeyboardInterrupt):
        run([task], tmp_path)
    assert read_state(tmp_path / "one")["state"] == "started"
    with held(task, tmp_path):
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["one"]


WATCHES = """
import signal, time
from pathlib import Path
received = []
def note(number, frame):  # as SignalWatch, without loading torch
    received.append(number)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_DFL)
for one in (signal.SIGINT, signal.SIGTERM):
    signal.signal(one, note)
print("here", flush=True)
while not received:
    time.sleep(0.02)
{then}
Path({saved!r}).write_text(str(received))
exit(128 + received[0])
"""


@pytest.mark.parametrize(("everybody", "twice"), [(False, False), (True, False), (False, True)])
def test_a_command_that_is_stopped_lets_its_runs_write_a_checkpoint(
    everybody: bool, twice: bool, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to all processes at once, a scheduler SIGTERM to one; the second one is for haste."""
    saved = tmp_path / "saved"
    program = WATCHES.format(then=f"time.sleep({30 if twice else 0.5})", saved=str(saved))
    parent = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
from pathlib import Path
import sga.experiments.engine as engine
from sga.experiments.task import Task
real = subprocess.Popen
program = "from sga.experiments.fit import end_with_parent; end_with_parent()\\n" + {program!r}
engine.subprocess.Popen = lambda arguments, **options: real([sys.executable, "-c", program], **options)
with engine.terminable():
    engine.run([Task("one", {{}})], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    wait_for(tmp_path / "one" / "fit.log", "here")

    def stop() -> None:
        (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT if everybody else signal.SIGTERM)

    began = time.monotonic()
    stop()
    assert process.stdout.readline().startswith("waiting up to 30 s for a checkpoint")
    if twice:
        stop()
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and time.monotonic() - began < 20
    assert saved.exists() != twice
    assert read_state(tmp_path / "one")["state"] == "started"


def test_a_run_that_does_not_end_when_asked_is_killed(
    command: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sga.experiments.engine, "GRACE", 0.5)
    command(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
    )
    task = Task("one", {})

    def interrupt() -> None:
        wait_for(tmp_path / "one" / "fit.log", "here")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with terminable(), pytest.raises(KeyboardInterrupt):
        run([task], tmp_path)
    with held(task, tmp_path):
        assert read_state(tmp_path / "one")["state"] == "started"


def wait_for(log: Path, text: str) -> None:
    """Until a log has a text."""
    deadline = time.monotonic() + 60
    while not (log.is_file() and text in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_time_left_goes_by_what_is_done_since_the_command_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 were there before; 2 in 100 s leave 8 at 50 s each."""
    now = 1000.0
    monkeypatch.setattr(sga.experiments.engine.time, "monotonic", lambda: now)
    pace = Pace(total=20, done=10)
    now += 100
    assert pace.after(12) == "12 of 20, 7 min left"
    assert pace.after(20) == "20 of 20"


def test_the_time_left_is_left_out_where_tasks_are_not_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sga unlearn` said of a finished evaluation "36 s left", as if training took as long as that."""
    run([Task(f"t{n}", {"n": n}) for n in range(2)], tmp_path, Pretended(), alike=False)
    assert capsys.readouterr().out.splitlines() == ["[1 of 2] t0: done", "[2 of 2] t1: done"]


def test_a_reason_is_read_from_exit_code_and_log(tmp_path: Path) -> None:
    log = tmp_path / "fit.log"
    log.write_text("Epoch 0\nsga: error: group_size must be at least 1, got 0\n", encoding="utf-8")
    assert why_ended(2, log) == "group_size must be at least 1, got 0 (exit code 2)"
    assert why_ended(-9, log) == "killed by SIGKILL (out of memory?)"
    log.write_text("", encoding="utf-8")
    assert why_ended(1, log) == "no output (exit code 1)"


def test_a_process_ends_with_its_parent() -> None:
    """The middle process starts a child as a worker does, says its number, and is killed."""
    module = end_with_parent.__module__
    child = f"from {module} import end_with_parent; end_with_parent(); import time; time.sleep(60)"
    middle = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    time.sleep(1.0)
    os.kill(number, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


# ---- jobs -----------------------------------------------------------------------------------------------------------


STAND_IN = """
import os, sys
if os.environ.get("FIT_STAND_IN"):
    import sga.experiments.engine as engine
    real = engine.subprocess.Popen
    name, _, code = os.environ["FIT_STAND_IN"].partition(":")
    program = f"from sga.experiments.fit import end_with_parent; end_with_parent()\\n{code}"

    class Popen(real):
        def __init__(self, arguments, **options):
            if "sga.experiments.fit" in arguments and any(f"/{name}/" in one for one in arguments):
                arguments = [sys.executable, "-c", program]
            super().__init__(arguments, **options)

    engine.subprocess.Popen = Popen
"""
"""Replaces `sga fit` in jobs, for the task that FIT_STAND_IN names before a colon, by the program after it."""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    (tmp_path / "sitecustomize.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return lambda name, code: monkeypatch.setenv("FIT_STAND_IN", f"{name}:{code}")


@pytest.mark.runs
def test_jobs_make_tasks_in_order_and_say_where_they_failed(
    stand_in: Callable[[str, str], None], tmp_path: Path
) -> None:
    """By submitit's local executor, which runs the code of SLURM jobs; a configuration is refused at once."""
    stand_in("other", "print('sga: error: no such thing'); exit(2)")
    target, one, _ = chain()
    other = Task("other", {"n": 1})
    pool = Cluster("local", tmp_path, workers=2, parameters={"timeout_min": 5})
    found = run([one, other], tmp_path, pool)
    assert {key: result.code for key, result in found.items()} == {target.key: 2, other.key: 2}
    assert "there is no setting 'a'" in str(found[target.key].reason)
    assert read_state(tmp_path / "other")["state"] == "failed"
    assert list((tmp_path / "jobs").iterdir())


@pytest.mark.runs
def test_a_job_that_runs_out_of_time_is_put_back_and_goes_on(
    stand_in: Callable[[str, str], None], tmp_path: Path
) -> None:
    """The first attempt would take 100 s and is given 12; the second ends at once."""
    attempts = str(tmp_path / "attempts")
    program = f"import time; open({attempts!r}, 'a').write('x'); again = len(open({attempts!r}).read()) > 1; "
    stand_in("one", program + "time.sleep(0 if again else 100)")
    task = Task("one", {})
    pool = Cluster("local", tmp_path / "all", 1, {})
    pool.executor._executor.update_parameters(timeout_min=0.2, signal_delay_s=4)
    assert run([task], tmp_path / "all", pool) == {task.key: Outcome()}
    assert (tmp_path / "attempts").read_text() == "xx"
    assert read_state(tmp_path / "all" / "one")["attempts"] == 2


def test_parameters_that_no_executor_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--cluster local: .*partitoin"):
        Cluster("local", tmp_path, 1, {"slurm_partitoin": "gpu"})
    with pytest.raises(UserError, match=r"--cluster slurm: "):
        Cluster("slurm", tmp_path, 1, {})


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"sga-unlearning\[slurm\]"):
        Cluster("local", tmp_path, 1, {})
