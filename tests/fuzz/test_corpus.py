"""Every input that fuzzing kept goes through the same target again, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import Target, signed_frame
from tests.support.events import NOW
from tests.support.gate import world
from tests.support.house import open_house

CORPUS = Path(__file__).parent / "corpus"


async def test_the_kept_inputs_break_nothing(tmp_path: Path) -> None:
    inputs = sorted(CORPUS.iterdir())
    async with open_house(world(tmp_path)) as house:
        target = Target(house)
        for path in inputs:
            try:
                await target.feed(path.read_bytes())
            except Exception as error:
                raise AssertionError(f"{path.name} broke something") from error
        await target.settle()
        refused = house.intake.counters.as_dict()
        assert house.intake.accepted > 3, "the corpus no longer reaches what lies behind the signature"
        assert len(refused) > 5, f"the corpus reaches only {sorted(refused)}"
        await target.gate.serves()


def test_a_draft_is_signed_and_anything_else_is_left_alone() -> None:
    draft = b'~{"k":5050,"c":"","t":[["i","Hi"]],"a":0,"w":0}'
    assert signed_frame(draft, NOW).startswith(b'["EVENT","jobs",{')
    for line in (b"~", b"~{}", b"~[]", b'~{"k":"x"}', draft[:-1], draft.replace(b"5050", b"1e999")):
        assert signed_frame(line, NOW) == line
