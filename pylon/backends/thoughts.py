"""What a model thinks before it answers, where its server sends that apart from the answer."""

from __future__ import annotations


class Thoughts:
    """Reasoning, kept up to a bound; `size_bytes` is that of all of it. Delivered only where no answer comes."""

    def __init__(self, max_bytes: int) -> None:
        self._parts: list[str] = []
        self._max_bytes = max_bytes
        self.size_bytes = 0

    def add(self, text: str) -> None:
        """Take one piece. Raises `UnicodeError` for a lone surrogate."""
        self.size_bytes += len(text.encode())
        if self.size_bytes <= self._max_bytes:
            self._parts.append(text)

    @property
    def text(self) -> str:
        """What was kept, as one text."""
        return "".join(self._parts)
