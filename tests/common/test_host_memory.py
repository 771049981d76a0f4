"""Free memory as control groups have it, whose files are made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from phasefast.common import host_memory


@pytest.mark.parametrize("version", ["", "memory"])
@pytest.mark.parametrize("name", ["job", "jöb", "a b/c"])
def test_the_tightest_group_counts_whatever_its_name(
    version: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, limit, usage, inactive = host_memory._VERSIONS[version]
    folder = tmp_path / "mount" / name
    folder.mkdir(parents=True)
    (folder / limit).write_text("5000\n")
    (folder / usage).write_text("3000\n")
    (folder / "memory.stat").write_text(f"anon 7\n{inactive} 400\n")
    (tmp_path / "groups").write_text(f"3:{version}:/{name}\n", encoding="utf-8")
    monkeypatch.setattr(host_memory, "_GROUPS", str(tmp_path / "groups"))
    monkeypatch.setattr(host_memory, "_VERSIONS", {version: (str(tmp_path / "mount"), limit, usage, inactive)})
    assert host_memory.free_memory() == 2400
    (folder / limit).write_text("max\n")
    assert host_memory.free_memory() > 2400
