"""What the heads of GGUF files tell, whole ones and broken ones, and what lies in a folder of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends.gguf import BadGguf, Gguf, read_gguf
from pylon.backends.gguf_shelf import ModelFile, Shelf
from tests.support.gguf_files import Value, gguf_bytes, model_bytes
from tests.support.model import model_path

LLAMA: dict[str, Value] = {"general.architecture": "llama", "llama.context_length": 8192}


def read(folder: Path, data: bytes) -> Gguf:
    file = folder / "a.gguf"
    file.write_bytes(data)
    return read_gguf(file)


def test_a_real_model() -> None:
    assert read_gguf(model_path()) == Gguf("llama", context_tokens=8192)


def test_what_is_told_of_a_file(tmp_path: Path) -> None:
    vocabulary: dict[str, Value] = {"tokenizer.ggml.tokens": ["<s>", "é" * 50], "ids": [1, 2, 3], "add": True}
    assert read(tmp_path, gguf_bytes({**vocabulary, **LLAMA})) == Gguf("llama", 8192)
    split = read(tmp_path, gguf_bytes({**LLAMA, "split.no": 1, "split.count": 3}))
    assert (split.part, split.parts) == (2, 3)
    assert not read(tmp_path, gguf_bytes({**LLAMA, "general.type": "adapter"})).generates
    assert not read(tmp_path, gguf_bytes({"general.architecture": "clip"})).generates


def test_weights_that_are_cut_off(tmp_path: Path) -> None:
    head = gguf_bytes(LLAMA, [("first", 0), ("last", 64)])
    begin = -(-len(head) // 32) * 32
    assert read(tmp_path, head.ljust(begin + 65, b"\0")).architecture == "llama"
    with pytest.raises(BadGguf, match="ends before its weights do"):
        read(tmp_path, head.ljust(begin + 64, b"\0"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no GGUF file"),
        (b"<html>", "is no GGUF file"),
        (b"GGUF", "in the middle"),
        (gguf_bytes(LLAMA, version=1), "version"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "absurd"),
        (gguf_bytes({}), "does not say what model"),
        (
            gguf_bytes(LLAMA).replace(b"\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"\x63\0\0\0\x05\0\0\0\0\0\0\0llama"),
            "type 99",
        ),
    ],
)
def test_what_is_no_model(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(BadGguf, match=said):
        read(tmp_path, data)


@given(st.integers(min_value=0, max_value=len(model_bytes()) - 1))
def test_a_head_that_is_cut_anywhere_is_told(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    with pytest.raises(BadGguf):
        read(tmp_path_factory.mktemp("cut"), model_bytes()[:size])


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with suppress(BadGguf):
        read(tmp_path_factory.mktemp("any"), b"GGUF\x03\0\0\0" + data)


# --- the folder -------------------------------------------------------------------------------------------------


def names(shelf: Shelf) -> dict[str, str]:
    return {each.name: each.fault for each in shelf.look()}


def test_each_file_is_a_model_named_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").write_bytes(model_bytes(512))
    (tmp_path / "A.Q4_1.GGUF").write_bytes(model_bytes())
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "lora.gguf").write_bytes(gguf_bytes({**LLAMA, "general.type": "adapter"}))
    (tmp_path / "folder.gguf").mkdir()
    found = Shelf(tmp_path).look()
    assert [(each.name, each.context_tokens, each.fault) for each in found] == [
        ("A.Q4_1", 2048, ""),
        ("b", 512, ""),
    ]


def test_a_single_file_may_be_called_anything(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(model_bytes())
    (found,) = Shelf(file).look()
    assert (found.name, found.path) == ("model", file)


def test_the_parts_of_a_model_are_one(tmp_path: Path) -> None:
    for part in (1, 2):
        head = gguf_bytes({**LLAMA, "split.no": part - 1, "split.count": 3})
        (tmp_path / f"big-{part:05}-of-00003.gguf").write_bytes(head)
    assert names(Shelf(tmp_path)) == {"big": "big-00001-of-00003.gguf has 3 parts, and part 3 is not there"}
    (tmp_path / "big-00003-of-00003.gguf").write_bytes(gguf_bytes({**LLAMA, "split.no": 2, "split.count": 3}))
    (found,) = Shelf(tmp_path).look()
    assert (found.name, found.path.name, found.fault) == ("big", "big-00001-of-00003.gguf", "")


def test_a_broken_file_is_told_without_hiding_the_others(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(model_bytes())
    (tmp_path / "bad\x1b.gguf").write_bytes(b"<html>")
    assert names(Shelf(tmp_path)) == {"good": "", "bad\x1b": "bad\\x1b.gguf is no GGUF file"}


def test_what_has_not_changed_is_not_read_twice(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(model_bytes())
    shelf = Shelf(tmp_path)
    (first,) = shelf.look()
    stat = file.stat()
    file.write_bytes(b"\0" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nothing tells that it changed
    assert shelf.look() == (first,)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    (second,) = shelf.look()
    assert isinstance(second, ModelFile)
    assert second.stamp != first.stamp
    assert second.fault == "a.gguf is no GGUF file"
    file.unlink()
    assert shelf.look() == ()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Shelf(tmp_path / "nowhere").look()
