"""A budget is honoured: measured in a process of its own, beyond what it holds before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, torch, phasefast as pf
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU())
images, labels = torch.randn(1250, 3, 32, 32), torch.randint(0, 10, (1250,))
def probe(fit, stop, memory):
    given = pf.ProbeSet.from_tensors(images[:fit], labels[:fit], images[fit:stop], labels[fit:stop])
    return pf.probe(net, given, layers="1", batch_size=32, memory=memory)
probe(40, 60, None)  # what libraries allocate once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores = probe(1000, 1250, "350MB")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
print(scores.values_of("route"), scores.values_of("dim"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_wide_layer_stays_within_its_budget() -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[0]) < 350
    assert "dual" in run.stdout
    assert "32768" in run.stdout
