"""Revisions on the Hugging Face Hub, which a small server on this machine stands for."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.checkpoints import Reader, order_checkpoints
from phasefast.checkpoints.hub import Revision, as_revision
from phasefast.errors import CheckpointError, DependencyError, StoreError, SweepError, UnreadableError
from tests.conftest import images

hub = pytest.importorskip("huggingface_hub")
safetensors = pytest.importorskip("safetensors.torch")
REPO = "group/small-70m"


class Store:
    """What the server has: files by revision of one repository, and what was asked of it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    def commit(self, revision: str) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(self.files[revision].items()))
        return hashlib.sha1(revision.encode() + content).hexdigest()

    def find(self, revision: str) -> str | None:
        return next((name for name in self.files if revision in (name, self.commit(name))), None)

    def refs(self) -> dict[str, Any]:
        names = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": self.commit(n)} for n in self.files]
        return {"branches": names, "tags": [], "converts": []}


class Handler(BaseHTTPRequestHandler):
    store: Store

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.store.asked.append(path)
        if path == f"/api/models/{REPO}/refs":
            return self.answer(200, json.dumps(self.store.refs()).encode())
        if path.startswith(start := f"/api/models/{REPO}/revision/"):
            if (name := self.store.find(path.removeprefix(start))) is not None:
                files = [{"rfilename": file} for file in self.store.files[name]]
                info = {"id": REPO, "sha": self.store.commit(name), "siblings": files}
                return self.answer(200, json.dumps(info).encode())
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(start := f"/api/models/{REPO}/tree/"):
            files = self.store.files[str(self.store.find(path.removeprefix(start)))]
            found = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in files.items()]
            return self.answer(200, json.dumps(found).encode())
        if path.startswith(start := f"/{REPO}/resolve/"):
            revision, _, file = path.removeprefix(start).partition("/")
            name = self.store.find(revision)
            data = self.store.files[name].get(file) if name else None
            if data is not None:
                tag = hashlib.sha1(data).hexdigest()
                return self.answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": self.store.commit(str(name))})
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


def weights(seed: int) -> bytes:
    return bytes(safetensors.save(network(seed).state_dict()))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    kept = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"store": kept}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=address, token=False))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield kept
    server.shutdown()
    server.server_close()


@pytest.fixture
def steps(store: Store) -> Store:
    store.files["main"] = {"model.safetensors": weights(4), "README.md": b"of a training"}
    for step in (0, 16, 128):
        store.files[f"step{step}"] = {"model.safetensors": weights(step), "pytorch_model.bin": b"the same again"}
    return store


def test_a_sweep_measures_all_revisions_with_a_step(steps: Store, tmp_path: Path) -> None:
    probe_set = pf.ProbeSet.from_tensors(*images(80, 1), *images(40, 2))
    model, out = network(1), tmp_path / "out"
    scores = pf.sweep(model, f"hf://{REPO}", probe_set, out=out, layers="1")
    expected = {step: network(step).state_dict() for step in (0, 16, 128)}
    same = pf.sweep(model, expected, probe_set, out=tmp_path / "same", layers="1")
    assert [part.tolist() for part in scores.curve("1", "input", "fvu")] == [
        part.tolist() for part in same.curve("1", "input", "fvu")
    ]
    downloads = [path for path in steps.asked if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path in downloads} == {"model.safetensors"}
    assert not list((tmp_path).glob("phasefast-*"))
    assert not (tmp_path / "cache").exists()
    # What is measured is known by its commit, and not downloaded again.
    steps.asked.clear()
    again = pf.sweep(model, f"hf://{REPO}@step*", probe_set, out=out, layers="1")
    assert again.to_arrow() == scores.to_arrow()
    assert steps.asked == [f"/api/models/{REPO}/refs"]
    steps.files["step16"]["model.safetensors"] = weights(5)
    with pytest.raises(StoreError, match="step 16 is stored already, but was measured on other weights"):
        pf.sweep(model, f"hf://{REPO}", probe_set, out=out, layers="1")


def test_revisions_are_ordered_by_the_steps_in_their_names(store: Store) -> None:
    content = {"model.safetensors": weights(0)}
    names = ("main", "stage1-step2000-tokens9B", "stage1-step1000-tokens4B", "stage2-step1000-tokens4B", "draft")
    store.files = dict.fromkeys(names, content)
    found = order_checkpoints(f"hf://{REPO}@stage1-*")
    assert [(step, str(source)) for step, source in found.items()] == [
        (1000, f"hf://{REPO}@stage1-step1000-tokens4B"),
        (2000, f"hf://{REPO}@stage1-step2000-tokens9B"),
    ]
    assert list(order_checkpoints({7: f"hf://{REPO}@draft", 9: "else.pt"})) == [7, 9]
    assert list(order_checkpoints([f"hf://{REPO}@stage1-step1000-tokens4B"])) == [1000]
    assert list(order_checkpoints(["hf://google/multiberts-seed_0-step_20k"])) == [20_000]
    with pytest.raises(CheckpointError, match="step 1000: given twice"):
        order_checkpoints(f"hf://{REPO}@stage*")
    del store.files["stage2-step1000-tokens4B"]
    with pytest.warns(RuntimeWarning, match=r"left out \['draft'\], which have no step in their names"):
        found = order_checkpoints(f"hf://{REPO}")
    assert list(found) == [1000, 2000]
    with pytest.raises(CheckpointError, match=r"@x\*: expected matching revisions with steps in their"):
        order_checkpoints(f"hf://{REPO}@x*")


@pytest.mark.parametrize("path", ["hf://", "hf://a/b/c", "hf://a/b@", "hf://@main", "hf://a@b@c"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(CheckpointError, match="expected hf://repository or hf://repository@revision"):
        as_revision(path)
    assert as_revision("checkpoints/hf") is None


def test_shards_and_single_files_are_read(store: Store, tmp_path: Path) -> None:
    state = network(3).state_dict()
    parts = [{name: value for name, value in state.items() if name[0] == layer} for layer in ("1", "3")]
    files = {f"model-0000{i}-of-00002.safetensors": part for i, part in enumerate(parts, 1)}
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    store.files["shards"] = {file: bytes(safetensors.save(part)) for file, part in files.items()}
    store.files["shards"]["model.safetensors.index.json"] = json.dumps(index).encode()
    torch.save({"net": state, "epoch": 3}, tmp_path / "own.pt")
    store.files["alone"] = {"own.pt": (tmp_path / "own.pt").read_bytes(), "optimizer.pt": b"", "sub/other.pt": b""}
    for name in ("shards", "alone"):
        found = Reader().read(Revision(REPO, name))
        assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in state.items()}
    loaded = Reader(load=lambda path: torch.load(path / "own.pt")["net"]).read(Revision(REPO, "alone"))
    assert loaded.keys() == state.keys()
    store.files["several"] = {**store.files["alone"], "other.pt": b"", "config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"got \['other.pt', 'own.pt'\]; load= \(--load\) can read other files"):
        Reader().read(Revision(REPO, "several"))
    names: list[str] = []

    def load(path: Path) -> dict:
        names.extend(sorted(file.name for file in path.iterdir() if file.is_file()))
        return dict(torch.load(path / "own.pt")["net"])

    assert Reader(load=load).read(Revision(REPO, "several")).keys() == state.keys()
    assert names == ["config.json", "optimizer.pt", "other.pt", "own.pt"]


def test_what_the_cache_holds_is_not_downloaded(steps: Store) -> None:
    revision = Revision(REPO, "step16")
    hub.HfApi().hf_hub_download(REPO, "model.safetensors", revision="step16")
    steps.asked.clear()
    assert Reader().read(revision).keys() == network(0).state_dict().keys()
    assert not any("/resolve/" in path for path in steps.asked)


def test_without_a_network_the_cache_is_enough(steps: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step16", "step128"):
        hub.HfApi().hf_hub_download(REPO, "model.safetensors", revision=name)
    commit = steps.commit("step16")
    with pytest.raises(UnreadableError, match="Repository Not Found"):  # an answer is not made up for
        order_checkpoints("hf://group/absent")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    for name in ("model_info", "list_repo_refs", "hf_hub_download"):
        monkeypatch.setattr(hub.hf_api.HfApi, name, unreachable)
    assert Revision(REPO, "step16").commit == Revision(REPO, commit).commit == commit
    with pytest.warns(RuntimeWarning, match="cannot be reached, so only the 2 revisions in its cache are used"):
        found = order_checkpoints(f"hf://{REPO}")
    assert list(found) == [16, 128]
    assert Reader().read(found[16]).keys() == network(0).state_dict().keys()
    with pytest.raises(UnreadableError, match="step0: cannot be read from the Hub"):
        Reader().read(Revision(REPO, "step0"))


def test_releases_are_no_steps(store: Store) -> None:
    content = {"model.safetensors": weights(0)}
    store.files = dict.fromkeys(("main", "step0", "step64", "8-bit", "1.0"), content)
    with pytest.warns(RuntimeWarning, match=r"left out \['1.0', '8-bit'\]"):
        assert list(order_checkpoints(f"hf://{REPO}")) == [0, 64]
    store.files = dict.fromkeys(("main", "1.0", "v2.0"), content)
    with pytest.raises(CheckpointError, match=rf"hf://{REPO}: main: expected a step in its name"):
        order_checkpoints(f"hf://{REPO}")
    assert str(order_checkpoints({3: Path(f"hf://{REPO}@main")})[3]) == f"hf://{REPO}@main"


def test_a_wrong_key_is_told_once(store: Store, tmp_path: Path) -> None:
    store.files = {f"step{step}": {"model.safetensors": weights(step)} for step in range(8)}
    probe_set = pf.ProbeSet.from_tensors(*images(80, 1), *images(40, 2))
    with pytest.raises(SweepError) as caught:
        pf.sweep(network(1), f"hf://{REPO}", probe_set, out=tmp_path / "out", layers="1", key="ema")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"  step 0: hf://{REPO}@step0: expected weights under the key 'ema'")
    with pytest.raises(CheckpointError, match="expected a folder to watch"):
        next(pf.watch(network(1), f"hf://{REPO}", probe_set, out=tmp_path / "out"))


def test_what_cannot_be_read_is_named(steps: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.files["step9"] = {"config.json": b"{}"}
    with pytest.raises(CheckpointError, match=rf"hf://{REPO}@step9: expected one of model\.safetensors, .* got .*conf"):
        Reader().read(Revision(REPO, "step9"))
    with pytest.raises(UnreadableError, match=rf"hf://{REPO}@step8: cannot be read from the Hub \(RevisionNotFound"):
        Reader().read(Revision(REPO, "step8"))
    with pytest.raises(UnreadableError, match="hf://group/absent: cannot be read from the Hub"):
        order_checkpoints("hf://group/absent")
    steps.files["step7"] = {"model.safetensors": b"nothing"}
    with pytest.raises(CheckpointError, match=rf"hf://{REPO}@step7/model\.safetensors: cannot be read"):
        Reader().read(Revision(REPO, "step7"))
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"pip install 'phasefast\[hub\]'"):
        order_checkpoints(f"hf://{REPO}")
