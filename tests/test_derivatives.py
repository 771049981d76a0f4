"""Networks that calculate derivatives of their own layers, as those that solve differential equations do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import LayerError
from tests.quiet import no_warnings


class Derived(nn.Module):
    """A network with its derivatives, as those that solve differential equations have."""

    def __init__(self, derived: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.derived = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1)), derived

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        slopes = torch.func.vmap(torch.func.jacrev(self.net))(x)[:, 0] if self.derived else x
        return {"u": self.net(x), "ux": slopes}


@pytest.mark.parametrize("layers", [["net.?"], ["net.0", "net.1", "net.2"]])
def test_calls_of_single_samples_under_vmap_are_none(layers: list[str]) -> None:
    x = torch.rand(150, 2, requires_grad=True)  # as points at which equations hold
    probe_set = pf.ProbeSet.from_tensors(x[:100], None, x[100:], None)
    assert not probe_set.fit_inputs.requires_grad
    with no_warnings():
        found, expected = (
            pf.probe(Derived(derived), probe_set, layers=layers, alphas=[1e-3]) for derived in (True, False)
        )
    assert found.layers == ["net.0", "net.1", "net.2"]
    for layer in found.layers:
        assert found.value(layer=layer, metric="fvu", split="heldout") == pytest.approx(
            expected.value(layer=layer, metric="fvu", split="heldout"), rel=1e-6
        )
    model = Derived(True)
    model.forward = lambda x: torch.func.vmap(model.net)(x)  # type: ignore[method-assign]
    with pytest.raises(LayerError, match=r"never fired; .*or under torch\.vmap"):
        pf.probe(model, probe_set, layers="net.0")
