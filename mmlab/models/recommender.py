"""Users and items in one space: a user likes what lies near."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmlab.batch import HISTORY, ITEM, NOBODY, USER, Batch, Embeddings, Input, Modality
from mmlab.models.encoders.encoder import Encoded, input_of
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.fusion import Fusion, check_heads, mean_token
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.popularity import Popularity


class Users(nn.Module):
    """Users by their number, by what they chose before, or by the sum of both.

    The history is read by transformer layers over [summary; items], each item with a vector for how long ago
    it was, as places from the end (SASRec: Kang and McAuley 2018, arXiv:1808.09781, without its causal mask,
    since the next item alone is told); without layers it is the mean of its items. Outside of training, items
    that no history of the training held are not read, for their vectors are as they were drawn; places start
    at zero, so those that it never reached say nothing. Beside a history, what numbers add starts at zero: a
    user that training has never had is told by the history alone. Without histories such a user is told by a
    random vector.
    """

    def __init__(
        self,
        dim: int,
        *,
        users: int | None = None,
        items: int | None = None,
        max_history: int = 50,
        num_layers: int = 1,
        num_heads: int = 2,
        dropout: float = 0.1,
    ) -> None:
        """Make the tables and layers.

        Args:
            dim: Size of a vector.
            users: How many there are, for those by number; None: numbers are not looked at.
            items: How many there are, for histories; None: histories are not looked at.
            max_history: Items of a history that are read, the latest ones.
            num_layers: Transformer layers; 0: none.
            num_heads: Attention heads; they divide `dim`.
            dropout: Probability in the layers and on vectors.

        Raises:
            ValueError: Neither users nor items, no history to read, or heads that do not divide `dim`.
        """
        super().__init__()
        if users is None and items is None:
            raise ValueError("users by what? Set users (how many), items (for histories), or both")
        if max_history < 1 or num_layers < 0:
            raise ValueError(
                f"max_history={max_history}, num_layers={num_layers}: at least 1 item, and 0 layers"
            )
        check_heads(dim, num_heads)
        self.dim = dim
        self.max_history = max_history
        self.dropout = nn.Dropout(dropout)
        # One row more, for those without a number.
        self.users = None if users is None else _table(users + 1, dim)
        if self.users is not None and items is not None:
            nn.init.zeros_(self.users.weight)
        self.items = None if items is None else _table(items, dim)
        if items is not None:
            self.seen = Popularity(items)
            self.ago = nn.Embedding(max_history, dim)
            nn.init.zeros_(self.ago.weight)
            self.summary = nn.Parameter(torch.randn(dim) * 0.02)
            self.layers = nn.ModuleList(
                TransformerLayer(dim, num_heads=num_heads, hidden=4 * dim, dropout=dropout)
                for _ in range(num_layers)
            )

    def forward(
        self, user: Int64[Tensor, " samples"], history: Int64[Tensor, "samples steps"]
    ) -> Float[Tensor, "samples dim"]:
        """A vector for each user, not of unit length.

        Args:
            user: Numbers, or NOBODY.
            history: Items, the latest last, NOBODY behind each history's end.
        """
        parts = []
        if self.users is not None:
            _check(user, self.users.num_embeddings - 1, "users")
            unknown = torch.full_like(user, self.users.num_embeddings - 1)
            parts.append(self.users(torch.where(user == NOBODY, unknown, user)))
        if self.items is not None:
            _check(history, self.items.num_embeddings, "items")
            parts.append(self._read(_latest(history, self.max_history)))
        vector: Tensor = self.dropout(torch.stack(parts).sum(dim=0))
        return vector

    def see(self, history: Int64[Tensor, "samples steps"]) -> None:
        """Note which items the histories of a training batch hold."""
        if self.items is not None:
            self.seen.see(_latest(history, self.max_history))

    def _read(self, history: Int64[Tensor, "samples steps"]) -> Float[Tensor, "samples dim"]:
        assert self.items is not None
        there = history != NOBODY
        if not self.training:
            there = there & self.seen.had[history.clamp(min=0)]
        # The latest item stands last, so its place from the end is 0.
        ago = there.flip(1).long().cumsum(dim=1).flip(1) - 1
        # Every place is read once, as zeros: with an empty history too the tables have a gradient.
        tokens = self.items(history.clamp(min=0)) + self.ago(ago.clamp(min=0))
        tokens = self.dropout(tokens.masked_fill(~there[:, :, None], 0))
        summary = self.summary.expand(len(tokens), 1, -1)
        if len(self.layers) == 0:
            mean: Tensor = tokens.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)
            return mean + self.summary
        tokens = torch.cat([summary, tokens], dim=1)
        mask = F.pad(there, (1, 0), value=True)[:, None, None, :]
        for layer in self.layers:
            tokens = layer(tokens, mask)
        first: Tensor = tokens[:, 0]
        return first


class Remembered:
    """What a frozen tower gave of each item: it need not run twice. Not kept in checkpoints.

    A sample that lacks the modality is none of whose item is remembered, and gets no token.
    Training and evaluation each have their own, for they may read an item in different ways. Ranks need not
    agree on what they know, so this is for towers whose weights lie whole on each.
    """

    def __init__(self, items: int) -> None:
        """Remember nothing yet.

        Args:
            items: How many there are.
        """
        self._items = items
        self._tokens: dict[bool, Tensor] = {}

    def __call__(
        self, tower: FusionTower, inputs: Input, item: Int64[Tensor, " samples"], *, training: bool
    ) -> Encoded:
        """One token of each item; the tower runs for those that are not known yet.

        Args:
            tower: Frozen, and with a pooling.
            inputs: Of the samples.
            item: Their numbers, or NOBODY, of which there is no token.
            training: Which of the two memories.
        """
        # What an evaluation remembers is changed in the next one: no tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            token = self._tokens.get(training)
            if token is None or token.device != item.device:
                # Behind the token stands whether it is known.
                token = torch.zeros(self._items, tower.dim + 1, device=item.device)
                self._tokens[training] = token
            has = inputs.present & (item != NOBODY)
            new = (has & (token[item.clamp(min=0), -1] == 0)).nonzero().flatten()
            if len(new) > 0:
                found = tower(inputs.select(new))
                token[item[new]] = F.pad(found.tokens[:, 0], (0, 1), value=1.0)
        return Encoded(token[item.clamp(min=0), None, :-1], has[:, None])


class Items(nn.Module):
    """Items by what is known of them (any modalities, fused), by their number, or by the sum of both.

    What numbers add starts at zero: an item that training has never had is told by its content alone.
    """

    def __init__(
        self,
        dim: int,
        *,
        items: int,
        number_dropout: float | None = 0.0,
        remember: bool = False,
        image: FusionTower | None = None,
        text: FusionTower | None = None,
        audio: FusionTower | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            dim: Size of a vector.
            items: How many there are.
            number_dropout: Share of items of which training leaves out the vector of their number, so that
                their content, if they have any, learns to stand alone (DropoutNet: Volkovs et al. 2017);
                None: numbers have no vectors.
            remember: Run towers that are frozen throughout, and not sharded, once for each item in training
                and once in evaluation. Of content that training reads at random (crops, one of several
                texts) the first view then stays.
            image: Encoder of pictures.
            text: Encoder of texts.
            audio: Encoder of sounds.
            fusion: Makes one of the modalities; wanted where there are any.

        Raises:
            ValueError: Nothing says what an item is; towers without a fusion or one made for other towers; an
                encoder of another modality.
        """
        super().__init__()
        self.dim = dim
        self.image, self.text, self.audio = image, text, audio
        if number_dropout is not None and not 0 <= number_dropout < 1:
            raise ValueError(f"number_dropout={number_dropout}: a share from 0 to below 1, or null")
        self.number_dropout = 0.0 if number_dropout is None else number_dropout
        self.remember = remember
        dims = {modality.value: tower.dim for modality, tower in self.towers()}
        for modality, tower in self.towers():
            if tower.encoder.modality != modality:
                raise ValueError(
                    f"the {modality} tower has {type(tower.encoder).__name__}, an encoder of "
                    f"{tower.encoder.modality}: move it to that tower"
                )
        made_for = {} if fusion is None else {modality.value: size for modality, size in fusion.dims.items()}
        if made_for != dims:
            raise ValueError(
                f"the towers give {dims}, but the fusion is made for dims={made_for}: set it to what they "
                "give"
            )
        if number_dropout is None and not dims:
            raise ValueError("items by what? Set number_dropout: 0.0, or a tower and a fusion")
        self.fusion = fusion
        self._known = {modality: Remembered(items) for modality, _ in self.towers()}
        self.popularity = Popularity(items)
        self.numbers = None if number_dropout is None else nn.Embedding(items, dim)
        if fusion is not None:
            self.projection = nn.Sequential(nn.LayerNorm(fusion.dim), nn.Linear(fusion.dim, dim))
        if self.numbers is not None:
            nn.init.zeros_(self.numbers.weight)
            if fusion is None:
                nn.init.normal_(self.numbers.weight, std=dim**-0.5)

    def towers(self) -> Iterator[tuple[Modality, FusionTower]]:
        """The towers that there are."""
        for modality in (Modality.IMAGE, Modality.TEXT, Modality.AUDIO):
            tower = getattr(self, modality.value)
            if tower is not None:
                yield modality, tower

    def forward(self, batch: Batch, item: Int64[Tensor, " samples"]) -> Float[Tensor, "samples dim"]:
        """A vector for each item, not of unit length.

        Args:
            batch: With what is known of each.
            item: Numbers, or NOBODY.

        Raises:
            ValueError: The run does not read a modality that there is a tower for.
        """
        _check(item, len(self.popularity.count), "items")
        parts = []
        if self.fusion is not None:
            encoded = {}
            for modality, tower in self.towers():
                inputs = input_of(batch, modality)
                fixed = tower.pooling is not None and not any(map(_moves, tower.parameters()))
                if self.remember and fixed:
                    known = self._known[modality]
                    encoded[modality] = known(tower, inputs, item, training=self.training)
                else:
                    encoded[modality] = tower(inputs)
            parts.append(self.projection(mean_token(self.fusion(encoded))))
        if self.numbers is not None:
            own = self.numbers(item.clamp(min=0))
            if self.training and self.number_dropout > 0 and self.fusion is not None:
                left_out = torch.rand(len(item), 1, device=item.device) < self.number_dropout
                own = own.masked_fill(left_out, 0)
            parts.append(own)
        return torch.stack(parts).sum(dim=0)


class Recommended(NamedTuple):
    """Vectors of the users and items of a batch, a row for each sample."""

    user: Embeddings
    """`group` is the number of the item that the user chose; NOBODY where the sample has no such pair."""
    item: Embeddings
    """`group` is the item's number; NOBODY where the sample has none."""
    chooser: Int64[Tensor, " samples"]
    """The user's number, or where there is none one below NOBODY that no other row has; NOBODY where the
    sample has no such pair."""
    log_share: Float[Tensor, " samples"]
    """Log of the share of training samples that have the item."""
    history: Int64[Tensor, "samples steps"]
    """What the user chose before, NOBODY behind its end."""


class Recommender(nn.Module):
    """A dual encoder of users and items (two towers: Yi et al. 2019, RecSys)."""

    def __init__(self, users: Users, items: Items) -> None:
        """Take both sides.

        Raises:
            ValueError: Their sizes differ.
        """
        super().__init__()
        if users.dim != items.dim:
            raise ValueError(f"users have dim={users.dim}, items dim={items.dim}: give both the same")
        self.users = users
        self.items = items

    def see(self, found: Recommended) -> None:
        """Count what a training batch holds; not in `forward`, which a backward pass may run again."""
        self.items.popularity.see(found.user.group)
        self.users.see(found.history.masked_fill((found.user.group == NOBODY)[:, None], NOBODY))

    def forward(self, batch: Batch) -> Recommended:
        """Run both sides, whatever samples lack.

        Raises:
            ValueError: The run does not read interactions.
        """
        rows = batch.signal
        if rows is None or rows.data.is_floating_point():
            raise ValueError(
                "the model reads who chose what: set data.signal to mmlab.data.interactions.InteractionReader"
            )
        data = rows.data.masked_fill((rows.owner == NOBODY)[:, None], NOBODY)
        user, item, history = data[:, USER], data[:, ITEM], data[:, HISTORY:]
        known = (item != NOBODY) & batch.valid
        pair = known & ((user != NOBODY) | (history != NOBODY).any(dim=1))
        nobody = torch.full_like(item, NOBODY)
        # Who has no number is nobody else: a number for each row, below those of users and NOBODY.
        chooser = torch.where(user == NOBODY, NOBODY - 1 - batch.place, user)
        return Recommended(
            user=Embeddings(_unit(self.users(user, history)), torch.where(pair, item, nobody), batch.place),
            item=Embeddings(_unit(self.items(batch, item)), torch.where(known, item, nobody), batch.place),
            chooser=torch.where(pair, chooser, nobody),
            log_share=self.items.popularity(item),
            history=history,
        )


def _table(rows: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=dim**-0.5)
    return table


def _moves(parameter: nn.Parameter) -> bool:
    """Whether it is trained, or lies on several ranks, which must then run it together."""
    return parameter.requires_grad or isinstance(parameter, DTensor)


def _unit(vector: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples dim"]:
    return F.normalize(vector.float(), dim=-1)


def _latest(history: Int64[Tensor, "samples steps"], most: int) -> Int64[Tensor, "samples kept"]:
    """The last items of each history, which end at different places, or one column of NOBODY."""
    length = (history != NOBODY).sum(dim=1, keepdim=True)
    width = max(min(int(length.max()) if len(history) else 0, most), 1)
    place = (length - width).clamp(min=0) + torch.arange(width, device=history.device)
    padded = F.pad(history, (0, width), value=NOBODY)
    return padded.gather(1, place)


def _check(numbers: Int64[Tensor, "..."], count: int, what: str) -> None:
    """Raise ValueError for a number beyond the table, which a GPU would only report later, as no one's."""
    highest = int(numbers.max()) if numbers.numel() else NOBODY
    if highest >= count:
        raise ValueError(
            f"{what}={count}, but the data have number {highest}: set {what} to {highest + 1} or more "
            "(dataset.json of the prepared data says how many there are)"
        )
