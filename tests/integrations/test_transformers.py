"""The callback in ``transformers.Trainer``, with a small BERT of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import phasefast as pf
from tests.test_sweep import without_seconds

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS: dict[str, Any] = {"layers": ["bert.encoder.layer.?"], "tokens": "mean"}
LAYERS = ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of 8 tokens whose class decides how large they are."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=g)
    return torch.randint(0, 12, (count, 8), generator=g) + 4 * labels[:, None], labels


@pytest.fixture(scope="module")
def token_set() -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(*tokens(100, 1), *tokens(60, 2))


def new_model() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=20, num_labels=3, max_position_embeddings=8, **sizes)
    )


def callback_for(token_set: pf.ProbeSet, out: Path | None = None, **options: Any) -> Any:
    from phasefast.integrations.transformers import PhaseCallback

    return PhaseCallback(token_set, out=out, on_error="raise", **OPTIONS, **options)


def train(place: Path, *callbacks: Any, resume: bool = False, **options: Any) -> Any:
    """A model that was trained, the same way each time."""
    inputs, labels = tokens(200, 3)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]
    silent = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
    given = {"max_steps": 5, "save_strategy": "no"} | options
    args = transformers.TrainingArguments(
        str(place), use_cpu=True, per_device_train_batch_size=16, learning_rate=1e-3, seed=7, **silent, **given
    )
    model = new_model()
    trainer = transformers.Trainer(model, args, train_dataset=rows, eval_dataset=rows[:20], callbacks=[*callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("bf16", [False, True])
def test_measures_in_full_precision_and_does_not_disturb_training(
    token_set: pf.ProbeSet, bf16: bool, tmp_path: Path
) -> None:
    callback = callback_for(token_set, tmp_path / "scores")
    watched, alone = train(tmp_path, callback, bf16=bf16), train(tmp_path, bf16=bf16)
    for (name, tensor), other in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    scores = callback.tracker.scores
    assert scores.steps == [0, 1, 2, 4, 5]
    assert scores.layers == LAYERS
    after = new_model()
    after.load_state_dict(watched.state_dict())
    for step, model in ((0, new_model()), (5, after)):
        now = pf.probe(model, token_set, step=step, **OPTIONS)
        assert without_seconds(scores.filter(step=step)) == without_seconds(now)
    assert without_seconds(pf.read_scores(tmp_path / "scores")) == without_seconds(scores)
    assert {cell.layer for cell in pf.detect_phases(scores)} == set(LAYERS)


def test_counts_optimizer_steps_while_gradients_accumulate(token_set: pf.ProbeSet, tmp_path: Path) -> None:
    callback = callback_for(token_set)
    train(tmp_path, callback, gradient_accumulation_steps=2, max_steps=7)
    assert callback.tracker.scores.steps == [0, 1, 2, 4, 7]


def test_a_resumed_training_goes_on(token_set: pf.ProbeSet, tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 4}
    train(tmp_path, callback_for(token_set, tmp_path / "scores"), max_steps=4, **saved)
    callback = callback_for(token_set, tmp_path / "scores")
    train(tmp_path, callback, max_steps=9, resume=True, **saved)
    assert callback.tracker.scores.steps == [0, 1, 2, 4, 8, 9]


def test_the_last_step_is_measured_before_the_best_weights_take_its_place(
    token_set: pf.ProbeSet, tmp_path: Path
) -> None:
    often = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    callback = callback_for(token_set)
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    loaded = train(tmp_path / "loaded", callback, max_steps=6, **often, **worst)
    trained = train(tmp_path / "trained", max_steps=6, **often)
    assert not torch.equal(loaded.classifier.weight, trained.classifier.weight)
    last = pf.probe(trained, token_set, step=6, **OPTIONS)
    assert without_seconds(callback.tracker.scores.filter(step=6)) == without_seconds(last)
