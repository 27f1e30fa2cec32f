import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macft.cli.render import PlainView
from macft.cli.watch import SAVING, watch
from macft.errors import MacftError, RunCrashed
from macft.run import Run
from tests.cli import recorded

ROOT = Path(__file__).parents[2]


class Follower:
    def __init__(self, folder, seconds):
        command = [sys.executable, "-m", "tests.cli.follower", "follow", str(folder), str(seconds)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.run = Run(folder)

    def wait_for_step(self):
        for line in self.process.stdout:
            if json.loads(line)["type"] == "step":
                return
        raise AssertionError(self.process.stderr.read())

    def end(self):
        _, error = self.process.communicate(timeout=20)
        return self.process.returncode, error


def wait_for_end(run):
    deadline = time.monotonic() + 20
    while run.is_live and time.monotonic() < deadline:
        time.sleep(0.02)
    return run.status(run.state())


@pytest.fixture
def follower(tmp_path):
    started = []

    def start(seconds):
        started.append(Follower(tmp_path / "run", seconds))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def test_a_run_is_followed_to_its_end(follower):
    following = follower(0.2)
    assert following.end() == (0, f"run {following.run.path}\n`macft chat run` talks to the result\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_run_save(follower, number, code):
    following = follower(20)
    following.wait_for_step()
    following.process.send_signal(number)
    exit_code, said = following.end()
    assert exit_code == code
    assert SAVING in said
    assert following.run.state().ended.exit_code == code


def test_the_second_signal_ends_both_at_once(follower):
    following = follower(20)
    following.wait_for_step()
    following.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    following.process.send_signal(signal.SIGINT)
    assert following.end()[0] == 130
    assert wait_for_end(following.run) == "crashed"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_the_run_goes_on_when_its_follower_is_gone(follower, number):
    following = follower(1.0)
    following.wait_for_step()
    following.process.send_signal(number)
    assert following.end()[0] == {signal.SIGHUP: 129, signal.SIGKILL: -9}[number]
    assert wait_for_end(following.run) == "done"


def test_the_run_goes_on_when_nobody_reads_its_events(follower):
    following = follower(1.0)
    following.wait_for_step()
    following.process.stdout.close()
    following.process.wait(timeout=20)
    assert following.process.returncode == 141
    said = following.process.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert wait_for_end(following.run) == "done"


def watched(run):
    lines = []
    return watch(run, PlainView(lines.append)), lines


def test_a_run_that_ended_is_shown_again(tmp_path):
    state, lines = watched(recorded.write_run(tmp_path / "r", recorded.done()))
    assert state.ended.status == "done"
    assert lines[-1] == "✔ done at step 20"


def test_a_run_that_failed_fails_its_follower(tmp_path):
    with pytest.raises(MacftError, match="worse") as caught:
        watched(recorded.write_run(tmp_path / "r", recorded.failed()))
    assert caught.value.exit_code == 3


def test_a_run_that_died_is_said_to_have_crashed(tmp_path):
    with pytest.raises(RunCrashed) as caught:
        watched(recorded.write_run(tmp_path / "r", recorded.training()))
    assert caught.value.exit_code == 5


class Leaving(PlainView):
    """A person who presses Ctrl-C at the first event."""

    is_closed = False

    def show(self, event, state):
        raise KeyboardInterrupt

    def close(self):
        self.is_closed = True


def test_leaving_an_attached_run_says_that_it_goes_on(tmp_path):
    said = []
    view = Leaving(said.append)
    with pytest.raises(KeyboardInterrupt):
        watch(recorded.write_run(tmp_path / "r", recorded.done()), view)
    assert said == ["r goes on; `macft stop r` stops it"]
    assert view.is_closed
