"""The weights that a new run starts from (`init_from`): another model's, adapted to this recipe's classes.

The network must be the same, apart from what it is told of the classes. What is made anew starts as follows (our
choice): the rows of other classes, and an added null label, as the mean of the trained class rows, so that the network
first does for each what it did on average; the rows of a network that had no labels as zeros, which change nothing;
a classifier's last layer at random, as in a fresh network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from dist_diffusion.config.protected import Change, changes
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed.agreement import on_rank_zero, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.errors import CheckpointError
from dist_diffusion.models.encoder import attention_factors
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.weights.load import LoadedModel, load_model
from dist_diffusion.weights.resolve import find
from dist_diffusion.weights.shapes import compare, network_shapes, shapes_of

LABELS = "label_emb.weight"
EMBEDDING_BIAS = "time_embed.2.bias"
"""Added to every embedding, as a label's row is to those of its class."""
MAY_DIFFER = ("num_classes", "null_label", "dropout", "image_size", "low_res_size", "attention_resolutions")
"""Options of a model that leave its blocks as they are (attention is compared by where in the network it is)."""

Tensors = dict[str, torch.Tensor]
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Initial:
    """Weights for a fresh network, and what to say of them."""

    tensors: Tensors
    """Those that are made anew are absent."""
    notes: list[str]

    def fill(self, module: nn.Module, say: Callable[[str], None]) -> None:
        """Copies the weights into the network, says how, and lets go of them."""
        for note in self.notes:
            say(note)
        unknown = module.load_state_dict(self.tensors, strict=False).unexpected_keys
        assert not unknown, unknown
        self.tensors.clear()


def read_initial(recipe: TrainRecipe, classes: Sequence[str], group: Group) -> Initial:
    """What recipe.init_from gives a run on data of these classes; the same error in every rank."""
    given = recipe.init_from
    assert given is not None
    path = on_rank_zero(group, lambda: find(given, None))
    return together(group, lambda: adapted(load_model(path), recipe, classes))


def adapted(source: LoadedModel, recipe: TrainRecipe, classes: Sequence[str]) -> Initial:
    """The source's weights for the recipe's network. CheckpointError lists what makes it another network."""
    refuse_another_network(source, recipe)
    before, now, known = source.recipe.model, recipe.model, source.info.get("classes")
    tensors, needed = dict(source.module.state_dict()), network_shapes(now)
    notes = [f"starting from the weights of {source.path}", *differences(source.recipe, recipe)]
    same = before.num_classes == now.num_classes and (not now.num_classes or known in (None, list(classes)))
    if same and now.num_classes and known is None:
        notes.append(f"it does not name its {now.num_classes} classes: they are taken for this data's, in order")
    if isinstance(before, UNetOptions) and isinstance(now, UNetOptions):
        tensors, said = adapt_labels(tensors, LabelRows.of(before), LabelRows.of(now), same)
        notes += said
    elif not same:
        layer = last_layer(needed)
        notes.append(f"{layer} is made anew: other classes")
        tensors, needed = without(tensors, layer), without(needed, layer)
    mismatch = compare(needed, shapes_of(tensors))
    if mismatch:
        raise CheckpointError(f"init_from={source.path} does not fit this network: {mismatch}")
    return Initial(tensors, notes)


def refuse_another_network(source: LoadedModel, recipe: TrainRecipe) -> None:
    """CheckpointError for another task, and for options of the model that differ and may not."""
    if source.recipe.task != recipe.task:
        raise CheckpointError(f"init_from={source.path} is of task {source.recipe.task}, this recipe of {recipe.task}")
    allowed = [f"model.{name}" for name in MAY_DIFFER]
    differing = [change for change in changes(source.recipe, recipe) if change.key.startswith("model.")]
    wrong = [change for change in differing if change.key not in allowed]
    before, now = attention(source.recipe), attention(recipe)
    if before != now:
        wrong.append(Change("model.attention_resolutions", before, now))
    if wrong:
        listed = "; ".join(map(str, wrong))
        raise CheckpointError(f"init_from={source.path} is another network, the recipe differs in {listed}")


def attention(recipe: TrainRecipe) -> str:
    """Where in the network there is attention, whatever the image size."""
    model = recipe.model
    passed = {2**level for level in range(len(model.channel_mult))}
    factors = sorted(attention_factors(model) & passed)
    return " and ".join(f"1/{factor}" for factor in factors) + " of image_size" if factors else "nowhere"


def differences(before: TrainRecipe, now: TrainRecipe) -> list[str]:
    """What to say of settings that leave the weights as they are but not what they were trained for."""
    quiet = ("model.num_classes", "model.null_label")
    found = [c for c in changes(before, now) if c.key.startswith(("model.", "diffusion.")) and c.key not in quiet]
    return [f"they were trained with another {change}" for change in found]


@dataclass(frozen=True)
class LabelRows:
    """How the rows of a label embedding are laid out: the classes, then the null label if there is one."""

    num_classes: int
    null: bool

    @staticmethod
    def of(model: UNetOptions) -> "LabelRows":
        """Of a network of resolved options."""
        assert model.num_classes is not None
        return LabelRows(model.num_classes, bool(model.null_label))


def adapt_labels(tensors: Tensors, before: LabelRows, now: LabelRows, same_classes: bool) -> tuple[Tensors, list[str]]:
    """The tensors with the label embedding that `now` asks for, and what to say of it."""
    if before == now and same_classes:
        return tensors, []
    rest, bias = {name: tensor for name, tensor in tensors.items() if name != LABELS}, tensors[EMBEDDING_BIAS]
    if not before.num_classes:
        rows = bias.new_zeros(now.num_classes + now.null, len(bias))
        return {**rest, LABELS: rows}, [f"{LABELS}: {len(rows)} rows of zeros, with which the network is as it was"]
    mean = tensors[LABELS][: before.num_classes].mean(dim=0, keepdim=True)
    null = tensors[LABELS][before.num_classes :] if before.null else mean
    if not now.num_classes:
        name = "its null row" if before.null else "the mean of its rows"
        return {**rest, EMBEDDING_BIAS: bias + null[0]}, [f"{LABELS} is left out; {name} is added to {EMBEDDING_BIAS}"]
    notes = []
    if same_classes:
        rows = tensors[LABELS][: before.num_classes]
    else:
        rows = mean.expand(now.num_classes, -1)
        notes.append(f"{LABELS}: other classes; each of the {now.num_classes} rows is the mean of the trained ones")
    if now.null and not before.null:
        notes.append(f"{LABELS}: a null row is added, the mean of the trained class rows")
    if before.null and not now.null:
        notes.append(f"{LABELS}: the null row is left out")
    return {**rest, LABELS: torch.cat([rows, null] if now.null else [rows])}, notes


def last_layer(needed: dict[str, tuple[int, ...]]) -> str:
    """The layer that a classifier's logits come from: in every pool the last of the network."""
    return list(needed)[-1].rpartition(".")[0]


def without(entries: dict[str, Entry], layer: str) -> dict[str, Entry]:
    """The entries of the other layers."""
    return {name: entry for name, entry in entries.items() if not name.startswith(f"{layer}.")}
