"""The weights that a new run starts from (`init_from`): another model's, adapted to this recipe's classes.

The network must be the same, apart from what it is told of the classes. A class whose name was trained keeps its row.
What is made anew starts as follows (our choice): the label rows of other classes, and an added null label, as the mean
of the trained class rows, so that the network first does for each what it did on average; the rows of a network that
had no labels as zeros, which change nothing; a classifier's last layer as zeros, so that it prefers none of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
Rows = list[int | None]
"""For each class the trained row that it keeps, or None."""


@dataclass(frozen=True)
class Initial:
    """Weights for a fresh network, and what to say of them."""

    tensors: Tensors
    notes: list[str]

    def fill(self, module: nn.Module, say: Callable[[str], None]) -> None:
        """Copies the weights into the network, says how, and lets go of them."""
        for note in self.notes:
            say(note)
        module.load_state_dict(self.tensors)
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
    assert before.num_classes is not None and now.num_classes is not None
    tensors = dict(source.module.state_dict())
    refuse_non_finite(source.path, tensors)
    notes = [f"starting from the weights of {source.path}", *differences(source.recipe, recipe)]
    if now.num_classes == before.num_classes and now.num_classes and known is None:
        notes.append(f"it does not name its {now.num_classes} classes: they are taken for this data's, in order")
    rows = kept_rows(before.num_classes, now.num_classes, known, classes)
    if isinstance(before, UNetOptions) and isinstance(now, UNetOptions):
        tensors, said = adapt_labels(tensors, LabelRows.of(before), LabelRows.of(now), rows)
    else:
        tensors, said = adapt_last_layer(tensors, before.num_classes, rows)
    mismatch = compare(network_shapes(now), shapes_of(tensors))
    if mismatch:
        raise CheckpointError(f"init_from={source.path} does not fit this network: {mismatch}")
    return Initial(tensors, notes + said)


def refuse_non_finite(path: str, tensors: Tensors) -> None:
    """CheckpointError names the tensors with which no step could be made."""
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        raise CheckpointError(f"init_from={path} holds values that are not finite, in {', '.join(wrong)}")


def kept_rows(before: int, now: int, known: Any, classes: Sequence[str]) -> Rows:
    """For each of `now` classes the trained row of its name; where the trained ones are not `known`, of its number."""
    if known is None or not before:
        return [i if before == now else None for i in range(now)]
    trained = {name: row for row, name in enumerate(known)}
    return [trained.get(name) for name in classes[:now]]


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


def adapt_labels(tensors: Tensors, before: LabelRows, now: LabelRows, rows: Rows) -> tuple[Tensors, list[str]]:
    """The tensors with the label embedding that `now` asks for, and what to say of it."""
    if before == now and is_identity(rows, before.num_classes):
        return tensors, []
    rest, bias = {name: tensor for name, tensor in tensors.items() if name != LABELS}, tensors[EMBEDDING_BIAS]
    if not before.num_classes:
        zeros = bias.new_zeros(now.num_classes + now.null, len(bias))
        return {**rest, LABELS: zeros}, [f"{LABELS}: {len(zeros)} rows of zeros, with which the network is as it was"]
    mean = tensors[LABELS][: before.num_classes].mean(dim=0, keepdim=True)
    null = tensors[LABELS][before.num_classes :] if before.null else mean
    if not now.num_classes:
        name = "its null row" if before.null else "the mean of its rows"
        return {**rest, EMBEDDING_BIAS: bias + null[0]}, [f"{LABELS} is left out; {name} is added to {EMBEDDING_BIAS}"]
    notes = row_notes(LABELS, before.num_classes, rows, "the mean of the trained ones")
    if now.null and not before.null:
        notes.append(f"{LABELS}: a null row is added, the mean of the trained class rows")
    if before.null and not now.null:
        notes.append(f"{LABELS}: the null row is left out")
    taken = taken_rows(tensors[LABELS], rows, mean)
    return {**rest, LABELS: torch.cat([taken, null] if now.null else [taken])}, notes


def adapt_last_layer(tensors: Tensors, before: int, rows: Rows) -> tuple[Tensors, list[str]]:
    """A classifier's tensors with a last layer for other classes, and what to say of it."""
    if is_identity(rows, before):
        return tensors, []
    layer = list(tensors)[-1].rpartition(".")[0]
    new = {
        name: taken_rows(tensor, rows, torch.zeros_like(tensor[:1]))
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] == layer
    }
    return {**tensors, **new}, row_notes(layer, before, rows, "zeros")


def taken_rows(tensor: torch.Tensor, rows: Rows, other: torch.Tensor) -> torch.Tensor:
    """The rows in the order of the new classes; `other` (1, ...) where a class was not trained."""
    return torch.cat([other if row is None else tensor[row : row + 1] for row in rows])


def is_identity(rows: Rows, before: int) -> bool:
    """Whether the classes are the trained ones, in their order."""
    return rows == list(range(before))


def row_notes(name: str, before: int, rows: Rows, other: str) -> list[str]:
    """What becomes of the rows of a layer."""
    if is_identity(rows, before):
        return []
    kept = sum(row is not None for row in rows)
    if not kept:
        return [f"{name}: other classes; each of the {len(rows)} rows is made anew, as {other}"]
    anew = f", {len(rows) - kept} are made anew, as {other}" if kept < len(rows) else ""
    return [
        f"{name}: other classes; {kept} of the {len(rows)} rows are those of the trained classes of that name{anew}"
    ]
