"""Relations from shards to scores: learning which entity is the head, pictures that are missing, labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_language import wordpiece

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.data.entity_pair import EntityPairReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.relation_classifier import RelationClassifier
from mmlab.optim import Optimization
from mmlab.tasks.relations import RelationTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
RELATIONS = ["None", "before", "behind"]


class Letters(Encoder):
    """A table of pieces, and what stands on the left and on the right."""

    modality = Modality.TEXT
    dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(120, 32)
        self.over = torch.nn.GRU(32, 16, batch_first=True, bidirectional=True)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.over(self.table(inputs.data))[0], inputs.mask)


def sample(number: int) -> dict[str, Any]:
    """`a beats b`: the head is before the tail, or behind it; of `a meets b` nothing is known.

    The same words with head and tail exchanged have another relation: only the markers tell.
    """
    known = number % 3 != 0
    words = ["x" * (number % 4 + 1), "ann", "beats" if known else "meets", "bob"]
    places = [[1, 2], [3, 4]]
    behind = number % 2 == 0
    relation = ("behind" if behind else "before") if known else "None"
    head, tail = reversed(places) if behind else places
    about: dict[str, Any] = {"words": words, "head": head, "tail": tail, "relation": relation}
    if number == 5:
        about["odd"] = "beside"
    return {"__key__": f"k{number}", "json": json.dumps({"odd": relation, **about}).encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relations")
    wordpiece().save_pretrained(folder / "tokenizer")
    for name, count in (("train", 96), ("val", 12), ("test", 26)):
        write_shards(map(sample, range(count)), folder, name)
    return folder


def make_data(folder: Path, *, field: str = "json.relation") -> ShardData:
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(folder / f"{s}-*.tar") for s in ("train", "val", "test")}),
        text=EntityPairReader(str(folder / "tokenizer"), max_length=32),
        loading=Loading(eval_batch_size=8, references=(field,), group_by="key"),
    )


def make_task(**settings: Any) -> RelationTask:
    torch.manual_seed(0)
    return RelationTask(
        RelationClassifier(Letters(), relations=3),
        **{"relations": RELATIONS, **settings},
        optimization=Optimization(partial(torch.optim.AdamW, lr=2e-2)),
        adaptation=Policy("full"),
    )


def test_who_is_the_head_is_learned(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    task, data = make_task(), make_data(folder)
    fit = trainer(max_epochs=8, check_val_every_n_epoch=8)
    fit.fit(task, data)
    found = fit.test(task, data, verbose=False)[0]
    assert found["test/f1"] > 0.95
    assert found["test/accuracy"] > 0.95
    assert found["test/f1_low"] <= found["test/f1"] <= found["test/f1_high"]


def test_the_loss_is_cross_entropy_with_weights(folder: Path) -> None:
    weights = {"None": 0.5, "before": 1.0, "behind": 2.0}
    task, data = make_task(weights=weights).eval(), make_data(folder)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    right = torch.tensor([RELATIONS.index(known[0]) for known in batch.references])
    each = torch.nn.functional.cross_entropy(task(batch).logits.double(), right, reduction="none")
    weight = torch.tensor(list(weights.values()), dtype=torch.float64)[right]
    value, _ = task.losses(batch)["relation"]
    torch.testing.assert_close(value.double(), (each * weight).sum() / weight.sum(), rtol=1e-5, atol=1e-6)


def test_relations_that_do_not_fit(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match=r"sample 'k5': the label 'beside' is none of None, before, behind"):
        trainer(max_epochs=1).fit(make_task(), make_data(folder, field="json.odd"))
    with pytest.raises(ValueError, match=r"sample 'k5': the label 'beside' is none of"):
        trainer().test(make_task(), make_data(folder, field="json.odd"))
    with pytest.raises(
        ValueError, match="none is 'NA', which is no relation: add it to relations, or set it"
    ):
        make_task(none="NA")
    with pytest.raises(ValueError, match="the model gives 3 relations, there are 2: set both alike"):
        make_task(relations=RELATIONS[:2])
    with pytest.raises(ValueError, match="name two or more, each once"):
        make_task(relations=["None", "a", "a"])
    data = make_data(folder)
    data.loading = Loading(group_by="key")
    with pytest.raises(ValueError, match=r"no relations to learn from: set data\.loading\.references"):
        trainer(max_epochs=1).fit(make_task(), data)


def test_a_label_for_no_relation_is_not_needed(folder: Path) -> None:
    task, data = make_task(none=None).eval(), make_data(folder)
    data.prepare_data()
    data.setup("test")
    metrics = task.make_metrics()
    for batch in data.test_dataloader():
        task.update_metrics(metrics, batch)
    found = metrics.compute()
    assert len(metrics.answered()) == 26
    assert found["f1"] == pytest.approx(found["accuracy"]), "micro F1 over all classes is accuracy"
