"""Long names: written in few letters, and all different."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from phasefast.report.names import LONGEST, cut, shortened


def test_short_names_stay_and_long_ones_lose_what_they_share() -> None:
    norms = [f"model.decoder.layers.{i}.post_attention_layernorm" for i in range(12)]
    written = shortened(["fc", *norms])
    assert written["fc"] == "fc"
    assert [written[name] for name in norms] == [f"…{i}.post_attention_layernorm" for i in range(12)]
    assert shortened(["model.decoder.layers.0.self_attn.q_proj"]) == {
        "model.decoder.layers.0.self_attn.q_proj": "…layers.0.self_attn.q_proj"
    }


@pytest.mark.parametrize(
    "names",
    [
        [f"module.encoder.blocks.{i}.feed_forward.down_projection" for i in range(30)],
        [f"model.layers.{i}.{part}_attention_projection.output_layernorm" for i in range(9) for part in ("in", "out")],
        [f"{part}.a_component_that_all_the_names_share.end" for part in ("left", "right", "middle")],
        ["m" * 40 + str(i) + "m" * 40 for i in range(10)],
        ["x" * 60, "x" * 61, "x"],
    ],
)
def test_names_stay_different(names: Sequence[str]) -> None:
    written = shortened(names)
    assert list(written) == names
    assert len(set(written.values())) == len(names)
    if max(map(len, names)) < 62 and names[-1] != "x":
        assert max(map(len, written.values())) <= LONGEST


def test_a_text_loses_its_middle() -> None:
    assert cut("abcdefgh", 8) == "abcdefgh"
    assert [cut("abcdefgh", letters) for letters in (5, 2, 1)] == ["ab…gh", "a…", "…"]
    assert cut("abcdefgh", 5, head=1) == "a…fgh"
