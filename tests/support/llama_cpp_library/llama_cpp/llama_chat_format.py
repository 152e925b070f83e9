"""The stand-in's chat templates: `role: content` for each message."""

from __future__ import annotations

from types import SimpleNamespace


class Jinja2ChatFormatter:
    def __init__(self, template: str, eos_token: str, bos_token: str) -> None:
        assert template.startswith("the template")

    def __call__(self, *, messages: list[dict[str, str]]) -> SimpleNamespace:
        if any("odd" in message["content"] for message in messages):
            raise ValueError("this template takes nothing odd")
        if messages[0]["role"] == "system":
            raise ValueError("this template takes no system message")
        said = "".join(f"{message['role']}: {message['content']} \n" for message in messages)
        return SimpleNamespace(prompt=f"{said}assistant:")
