"""Messages, the progress bar, and the lines of errors."""

import io
import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer import errors
from organ_infer.cli import progress
from organ_infer.cli.progress import Messages, bar_text, duration
from organ_infer.errors import one_line, printable, shorten_names

quick = settings(max_examples=100, deadline=None)


@quick
@given(
    done=st.integers(0, 10**7), failed=st.integers(0, 99), total=st.none() | st.integers(1, 10**7),
    seconds=st.sampled_from([0.0, 0.5, 8.0]), columns=st.integers(-1, 120),
)  # fmt: skip
def test_the_bar_fits_and_holds_what_there_is_room_for(done, failed, total, seconds, columns):
    text = bar_text(done, failed, total, seconds, columns)
    count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
    whole = f"{count} images" + (f" {done / seconds:,.0f}/s" if seconds else "")
    if total is not None and 0 < done < total and seconds:
        whole += f" {duration((total - done) * seconds / done)} left"
    whole += f" {failed:,} failed" if failed else ""
    assert len(text) <= max(columns, 0)
    if total is None or columns - len(whole) < 13:
        assert text == (whole if len(whole) <= columns else count[: max(columns, 0)])
        return
    bar, rest = text[1:].split("] ")
    assert text[0] == "[" and rest == whole
    assert len(bar) == min(30, columns - len(whole) - 3) and bar == "#" * bar.count(
        "#"
    ) + "." * bar.count(".")
    assert bar.count("#") == int(len(bar) * min(done, total) / total)


def test_a_bar_of_ten_is_the_shortest():
    assert bar_text(5, 0, 10, 0, 24) == "[#####.....] 5/10 images"
    assert bar_text(5, 0, 10, 0, 23) == "5/10 images"
    assert bar_text(5, 1, None, 2, 80) == "5 images 2/s 1 failed"


def test_the_time_left_is_that_of_the_images_left():
    assert bar_text(300, 2, 900, 60, 42) == "300/900 images 5/s 2 min 0 s left 2 failed"
    assert bar_text(900, 0, 900, 60, 24) == "900/900 images 15/s"
    assert bar_text(0, 0, 900, 60, 24) == "0/900 images 0/s"


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 40 columns and a clock that is set by hand."""
    data = io.BytesIO()
    terminal = SimpleNamespace(
        isatty=lambda: True, flush=lambda: None, buffer=SimpleNamespace(write=data.write, flush=lambda: None),
        fileno=lambda: 99, now=100.0, text=lambda: data.getvalue().decode(),
    )  # fmt: skip
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setattr(progress.time, "monotonic", lambda: terminal.now)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((40, 9)))
    return terminal


def test_the_bar_is_drawn_every_tenth_of_a_second_over_the_one_before(screen):
    messages = Messages()
    screen.now += 0.09
    messages.progress(1, 0, None)
    assert screen.text() == ""
    screen.now += 0.91
    messages.progress(10, 1, None)
    assert screen.text() == "\r10 images 10/s 1 failed"
    screen.now += 0.05
    messages.progress(11, 1, None)
    assert screen.text().count("\r") == 1
    screen.now += 0.95
    messages.progress(12, 0, None)
    first, second = screen.text().split("\r")[1:]
    assert second == "12 images 6/s".ljust(len(first))
    messages.end()
    assert screen.text().endswith("\r" + " " * 13 + "\r")
    before = screen.text()
    messages.end()
    assert screen.text() == before


def test_a_bar_on_a_terminal_that_became_narrower_is_cleared_up_to_its_last_column_but_one(
    screen, monkeypatch
):
    messages = Messages()
    screen.now += 1
    messages.progress(10, 1, None)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((10, 9)))
    messages.end()
    assert screen.text().split("\r")[2:] == [" " * 9, ""]


def test_the_bar_leaves_the_last_column_free(screen):
    messages = Messages()
    screen.now += 1
    messages.progress(5, 0, 10)
    assert (
        screen.text() == "\r[######......] 5/10 images 5/s 1 s left"
        and len(screen.text()[1:]) == 39
    )
    messages.error("x")
    assert screen.text().split("\r")[2] == " " * (len(screen.text().split("\r")[1]))


def test_the_rate_does_not_count_what_came_before_the_first_image(screen):
    messages = Messages()
    screen.now += 50
    messages.start_progress()
    screen.now += 2
    messages.progress(10, 0, None)
    assert screen.text() == "\r10 images 5/s" and messages.seconds == 52


def test_the_bar_is_off_when_quiet_on_no_terminal_and_on_a_dumb_one(screen, monkeypatch):
    quiet = Messages()
    quiet.quiet = True
    monkeypatch.setenv("TERM", "dumb")
    dumb = Messages()
    monkeypatch.setenv("TERM", "xterm")
    screen.isatty = lambda: False
    file = Messages()
    screen.now += 5
    for messages in (quiet, dumb, file):
        messages.progress(5, 0, 10)
    assert screen.text() == "" and quiet.bar and not dumb.bar and not file.bar


def test_quiet_leaves_out_notes_and_no_errors(screen):
    messages = Messages()
    messages.note("a\tb")
    messages.warning("w")
    messages.status("s")
    messages.quiet = True
    for write in (messages.note, messages.warning, messages.status):
        write("c")
    messages.error("d\n\udcff")
    data = "note: a\\x09b\nwarning: w\ns\nerror: d\\x0a\\xff\n"
    data = "".join(f"organ-infer: {line}\n" for line in data.splitlines())
    assert data.encode() == screen.buffer.write.__self__.getvalue()


def test_a_standard_error_that_is_closed_or_full_stops_nothing(screen):
    def full(data):
        raise OSError(28, "No space left on device")

    screen.buffer.write = full
    Messages().error("x")
    screen.flush = lambda: (_ for _ in ()).throw(ValueError("closed file"))
    Messages().error("x")
    progress.sys.stderr = None
    messages = Messages()
    messages.error("x")
    assert not messages.bar


@pytest.mark.parametrize("raised", [OSError(25, "no tty"), ValueError("closed"), None])
def test_without_a_size_a_terminal_has_80_columns(screen, monkeypatch, raised):
    def size(number):
        if raised:
            raise raised
        return os.terminal_size((0, 0))

    monkeypatch.setattr(os, "get_terminal_size", size)
    assert progress._columns() == 80


@quick
@given(st.text(max_size=20))
def test_a_printable_text_stays_and_any_other_becomes_one_line(text):
    found = printable(text)
    assert found == text if text.isprintable() else found != text
    assert found.isprintable()


def test_control_characters_and_odd_bytes_are_escaped_so_that_they_differ():
    assert printable("a\n\x1b[31m\u202e") == "a\\x0a\\x1b[31m\\u202e"
    assert printable("\udc7f\udc80\udcff\ud800") == "\\udc7f\\x80\\xff\\ud800"
    assert printable("\x85\udc85\U000e0001") == "\\u0085\\x85\\U000e0001"
    # An ASCII locale decodes every other byte to a surrogate.
    assert printable("\udcc3\udca4\udcff") == "ä\\xff"


def test_an_error_is_its_text_on_one_line_or_its_type():
    assert one_line(ValueError("a\n  b")) == one_line("a\n b ") == "a b"
    assert one_line(KeyError()) == "KeyError" and one_line(MemoryError("  ")) == "MemoryError"


def test_every_error_is_one_of_the_package_s_and_a_wrong_argument_a_value_error_too():
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(kinds) == 5 and all(issubclass(kind, errors.OrganInferError) for kind in kinds)
    assert [kind for kind in kinds if issubclass(kind, ValueError)] == [errors.InputError]


def test_a_list_of_names_is_shortened_by_whole_names():
    assert shorten_names([], 40) == "" and shorten_names(["a", "b"], 40) == "a, b"
    names = [f"rib_{i}" for i in range(1, 13)]
    whole = ", ".join(names)
    assert shorten_names(names, len(whole)) == whole
    assert shorten_names(names, len(whole) - 1) == (
        "rib_1, rib_2, rib_3, rib_4, rib_5, rib_6, rib_7, ..., rib_9, rib_10, rib_11, rib_12"
    )
    # one long name, or two, do not take the place of the others
    assert len(shorten_names(["a" * 999], 40)) <= 10
    assert len(shorten_names(["a" * 999] * 9, 40)) <= 40
