"""The public data sets that `mmlab data` knows by name."""

from __future__ import annotations

from importlib import import_module

from mmlab.data.source import Source

SOURCES = {
    "coco": "mmlab.sources.coco.Coco",
    "conll2003": "mmlab.sources.conll2003.Conll2003",
    "conversations": "mmlab.sources.conversations.Conversations",
    "daquar": "mmlab.sources.daquar.Daquar",
    "easy_vqa": "mmlab.sources.easy_vqa.EasyVqa",
    "emodb": "mmlab.sources.emodb.EmoDb",
    "esc10": "mmlab.sources.esc10.Esc10",
    "esc50": "mmlab.sources.esc50.Esc50",
    "flickr30k": "mmlab.sources.flickr.Flickr30k",
    "flickr8k": "mmlab.sources.flickr.Flickr8k",
    "funsd": "mmlab.sources.funsd.Funsd",
    "generated": "mmlab.sources.generated.Generated",
    "gqa": "mmlab.sources.gqa.Gqa",
    "meld": "mmlab.sources.meld.Meld",
    "mmrec": "mmlab.sources.mmrec.MmRec",
    "mnre": "mmlab.sources.mnre.Mnre",
    "mosi": "mmlab.sources.mosi.Mosi",
    "movielens": "mmlab.sources.movielens.MovieLens",
    "multi30k": "mmlab.sources.multi30k.Multi30k",
    "mustard": "mmlab.sources.mustard.Mustard",
    "nlvr": "mmlab.sources.nlvr.Nlvr",
    "nlvr2": "mmlab.sources.nlvr2.Nlvr2",
    "ravdess": "mmlab.sources.ravdess.Ravdess",
    "science_qa": "mmlab.sources.science_qa.ScienceQa",
    "sort_of_clevr": "mmlab.sources.sort_of_clevr.SortOfClevr",
    "sroie": "mmlab.sources.sroie.Sroie",
    "stamps": "mmlab.sources.stamps.Stamps",
    "twitter_entities": "mmlab.sources.twitter_entities.TwitterEntities",
    "vqa": "mmlab.sources.vqa.Vqa",
    "wnut17": "mmlab.sources.wnut17.Wnut17",
}
"""Import path of each source."""


def source_class(name: str) -> type[Source]:
    """Import a source; its docstring says what it is.

    Raises:
        ValueError: There is no such source.
    """
    if name not in SOURCES:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(SOURCES)}")
    module, _, attribute = SOURCES[name].rpartition(".")
    found: type[Source] = getattr(import_module(module), attribute)
    return found
