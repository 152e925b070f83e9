"""How the demo tells what happens: a label and a line each, and the answer word by word as it streams."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, TextIO

from pylon.text import printable

_LABEL_WIDTH: Final = 10
_INDENT: Final = " " * (_LABEL_WIDTH + 4)
_WIDEST: Final = 100
_NARROWEST: Final = 40

WriteText = Callable[[str], object]


class Paint(StrEnum):
    """What a colour says; the value is its ANSI code."""

    LABEL = "36"
    GOOD = "32"
    BAD = "31"
    DIM = "2"
    BOLD = "1"


class Story:
    """Writes to one stream; colours and lines that change in place only where it is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        columns = shutil.get_terminal_size((_WIDEST, 24)).columns
        self._width = max(_NARROWEST, min(_WIDEST, columns - 1))

    def say(self, text: str = "", paint: Paint | None = None) -> None:
        """Write one line as it is; it is ours, or printable already."""
        self._write(self._painted(text, paint) + "\n")

    def tell(self, label: str, *lines: str, paint: Paint | None = None) -> None:
        """Write lines under one label."""
        for number, line in enumerate(lines):
            self._write(f"{self._head('' if number else label)}{self._painted(line, paint)}\n")

    @contextmanager
    def step(self, label: str, doing: str) -> Iterator[Step]:
        """Tell that something begins, and at the end of the block what `Step.done` said and how long it took."""
        step = Step(self, label, doing)
        step.begin()
        try:
            yield step
        except BaseException:
            step.give_up()
            raise
        step.finish()

    def answer(self) -> Answer:
        """Return a writer for text that comes in pieces."""
        return Answer(self._write, self._width)

    # --- for Step -----------------------------------------------------------------------------------------------

    def in_place(self, label: str, text: str) -> None:
        """Show a line that the next one overwrites; nothing where there is no terminal."""
        if self._terminal:
            room = self._width - len(_INDENT)
            self._write(f"\r\x1b[K{self._head(label)}{self._painted(text[:room], Paint.DIM)}")

    def clear(self) -> None:
        """Take the line in place away."""
        if self._terminal:
            self._write("\r\x1b[K")

    @property
    def in_places(self) -> bool:
        """Whether lines can change in place."""
        return self._terminal

    def _head(self, label: str) -> str:
        return f"  {self._painted(label.ljust(_LABEL_WIDTH), Paint.LABEL)}  "

    def _painted(self, text: str, paint: Paint | None) -> str:
        return f"\x1b[{paint}m{text}\x1b[0m" if self._colours and paint and text else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Step:
    """One thing that takes a moment."""

    def __init__(self, story: Story, label: str, doing: str) -> None:
        self._story = story
        self._label = label
        self._doing = doing
        self._began = time.monotonic()
        self._done = ""

    @property
    def took_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """Show that it begins."""
        if self._story.in_places:
            self.tick()
        else:
            self._story.tell(self._label, f"{self._doing} …")

    def tick(self, doing: str = "") -> None:
        """Show that it goes on, and for how long."""
        self._doing = doing or self._doing
        self._story.in_place(self._label, f"{self._doing} … {self.took_s:.1f} s")

    def done(self, text: str) -> None:
        """Say what came of it; shown when the block ends."""
        self._done = text

    def finish(self) -> None:
        """Put the outcome in the line's place."""
        self._story.clear()
        self._story.tell(self._label, f"{self._done} ({self.took_s:.1f} s)")

    def give_up(self) -> None:
        """Leave the line as it was when it went wrong."""
        if self._story.in_places:
            self._story.say()


class Answer:
    """A text that grows, wrapped at words; what was written once stays, so an unfinished word waits."""

    def __init__(self, write: WriteText, width: int) -> None:
        self._write = write
        self._room = width - len(_INDENT)
        self._shown = ""
        self._held = ""
        self._column = 0
        self._begun = False

    def grow(self, text: str) -> None:
        """Show `text`, all of it so far. A text that does not continue the last one starts on a new line."""
        if not text.startswith(self._shown):
            self._flush_word()
            self._break()
            self._shown = ""
        piece, self._shown = text[len(self._shown) :], text
        for char in piece:
            if char.isspace():
                self._flush_word()
                if char == "\n":
                    self._break()
            else:
                self._held += printable(char)

    def close(self) -> None:
        """Show what is held, and end the line."""
        self._flush_word()
        if self._begun:
            self._write("\n")

    def _flush_word(self) -> None:
        if not self._held:
            return
        if self._column and self._column + 1 + len(self._held) > self._room:
            self._break()
        self._put(" " + self._held if self._column else self._held)
        self._held = ""

    def _put(self, text: str) -> None:
        if text and not self._begun:
            self._write(_INDENT)
            self._begun = True
        self._write(text)
        self._column += len(text)

    def _break(self) -> None:
        if self._begun:
            self._write(f"\n{_INDENT}")
        self._column = 0
