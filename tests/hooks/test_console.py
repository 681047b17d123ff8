import io
import re

import pytest

from vissl_like.hooks import console
from vissl_like.hooks.console import ConsoleHook, banner_lines, duration_text

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that only passes when told to."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


def test_plain_output_of_a_run(make_run, capsys, clock):
    run = make_run(ConsoleHook(seconds=5.0), total=40, per_epoch=10)
    run.say("said before the banner")
    run.start()
    for step in range(1, 41):
        clock.now += 1.0
        run.do_step(loss=float(step), lr=0.25)
    run.emit("knn", top1=81.25, text="k-NN at step 40: 81.2 % of 561 images (k=20)")
    run.emit("step", loss=1.0)
    run.emit("checkpoint", path="runs/x/step_40", reason="end")
    run.say("mind the gap", "warning")
    run.end()
    out = capsys.readouterr().out
    assert ESCAPE not in out
    lines = out.splitlines()
    assert lines[0].startswith("vissl_like ")
    assert lines[1:4] == [
        "Data          320 images, none, 0 skipped at scan",
        "Trivial loss  4.0943",
        "said before the banner",
    ]
    progress = [line for line in lines if line.startswith("epoch")]
    # the first step, every 5 s (= 5 steps), the last
    assert [re.search(r"step (\d+)/40", line)[1] for line in progress] == [
        "1",
        "6",
        "11",
        "16",
        "21",
        "26",
        "31",
        "36",
        "40",
    ]
    second = progress[1]
    assert "epoch 0.60/4" in second
    assert "loss 4.0000" in second  # mean of steps 2..6
    assert "lr 0.25" in second
    assert "64 images/s" in second  # 32 images in 0.5 s
    assert "waiting 20 %" in second
    assert "GiB" in second
    assert "0:00:34 left" in second  # 34 steps of 1 s
    assert "left" not in progress[0]
    assert lines[-5:-1] == [
        progress[-1],
        "k-NN at step 40: 81.2 % of 561 images (k=20)",
        "checkpoint of step 40: runs/x/step_40",
        "warning: mind the gap",
    ]
    assert lines[-1].startswith("finished at step 40 of 40 after 0:00:40; files are in ")


def test_the_end_of_a_stopped_run_tells_why(make_run, capsys, clock):
    run = make_run(ConsoleHook()).start()
    run.do_steps(3)
    run.request_stop("SIGINT")
    run.end()
    assert "stopped (SIGINT) at step 3 of 100" in capsys.readouterr().out


def test_unreadable_images_are_listed_up_to_a_limit(make_run, capsys):
    run = make_run(ConsoleHook()).start()
    capsys.readouterr()
    for number in range(20):
        run.emit("skipped_image", path=f"{number}.png", reason="truncated")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0] == "warning: unreadable image skipped: 0.png (truncated)"
    assert "more unreadable images" in lines[5]


def test_other_processes_are_quiet(make_run, capsys):
    run = make_run(ConsoleHook())
    run.is_main = False
    run.start()
    run.do_steps(3)
    run.say("hello")
    run.end()
    assert capsys.readouterr().out == ""


def test_bar_on_a_terminal_and_messages_above_it(make_run, monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(console.sys, "stdout", terminal)
    run = make_run(ConsoleHook(), total=5).start()
    clock.now += 10
    run.do_steps(2, loss=2.5)
    run.say("a [bold]literal[/bold] message", "warning")
    clock.now += 10
    run.do_steps(3, loss=1.5)
    run.end()
    shown = terminal.getvalue()
    assert ESCAPE in shown
    assert "a [bold]literal[/bold] message" in shown
    assert "40 %" in shown or "20 %" in shown
    assert "100 %" in shown
    assert "finished at step 5 of 5" in shown


def test_bar_is_taken_down_when_the_run_dies(make_run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console.sys, "stdout", terminal)
    run = make_run(ConsoleHook()).start()
    hidden, shown = f"{ESCAPE}[?25l", f"{ESCAPE}[?25h"
    assert hidden in terminal.getvalue() and shown not in terminal.getvalue()
    run.fail(RuntimeError("x"))
    assert terminal.getvalue().rstrip().endswith(shown) or shown in terminal.getvalue()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_simple_terminals_get_plain_lines(make_run, monkeypatch, term):
    terminal = Terminal()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(console.sys, "stdout", terminal)
    run = make_run(ConsoleHook()).start()
    run.do_steps(1)
    run.end()
    assert ESCAPE not in terminal.getvalue() and "step 1/100" in terminal.getvalue()


def test_messages_before_a_failed_start_are_not_lost(make_run, capsys):
    run = make_run(ConsoleHook())
    run.say("the cause")
    run.fail(RuntimeError("x"))
    assert capsys.readouterr().out == "the cause\n"


def test_long_banner_texts_are_wrapped_under_their_column():
    lines = banner_lines([("Remark", "word " * 60), ("A", "b")])
    assert len(lines) > 4 and all(len(line) <= 118 for line in lines)
    assert all(line.startswith(" " * 8 + "word") for line in lines[2:-1])
    assert lines[-1] == "A       b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
