"""The logits in a classifier's output, and the match between its outputs and the classes of data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from probekit.errors import DataError, ModelError, OptionError, close_matches, some_of
from probekit.models.image_model import Model, module_of
from probekit.models.nested import named_parts

ClassMap: TypeAlias = "Mapping[str | int, str | int] | Literal['index'] | None"

# If the probability that no label falls on the last outputs of a classifier is lower, labels do not fit.
_RARE = 0.01
_DIGITS = re.compile(r"(\d+)")
_WORDNET = re.compile(r"n\d{8}")
# Names of representations, which are not logits whatever their shape.
_REPRESENTATION = re.compile(r"pool|embed|hidden|feature", re.IGNORECASE)


def logits_of(output: object, samples: int, classes: int | None = None) -> Tensor | None:
    """Finds the logits in the output of a model: a tensor, or a nested output that contains tensors.

    Returns the tensor itself, the one named `logits`, or the only one of shape (samples, classes) with at
    least two classes; None if there is none, or more than one. A tensor with the name of a representation
    (`pooler_output`, `image_embeds`, `last_hidden_state`) is never returned.
    """
    if isinstance(output, Tensor):
        return output if _is_logits(output, samples) else None
    parts = named_parts(output)
    for name, part in parts:
        if name == "logits":
            return part if _is_logits(part, samples) else None
    found = [(name, part) for name, part in parts if _is_logits(part, samples)]
    if len(found) > 1 and classes is not None:
        found = [(name, part) for name, part in found if part.shape[1] == classes]
    if len(found) != 1 or _REPRESENTATION.search(found[0][0]):
        return None
    logits: Tensor = found[0][1]
    return logits


def required_logits(output: object, samples: int, asker: str, classes: int | None = None) -> Tensor:
    """`logits_of` that raises `ModelError` if there are none; `asker` is the feature that needs them."""
    logits = logits_of(output, samples, classes)
    if logits is None:
        raise ModelError(
            f"{asker} needs logits (batch, classes) of two or more classes, and the model returns "
            f"{_format(output)}; pass a module that returns the logits"
        )
    return logits


@dataclass(frozen=True)
class ClassMatch:
    """The model output that corresponds to each class of some data.

    Attributes:
        outputs: Number of outputs of the model.
        order: Maps labels to outputs; None if label i is output i.
        by: How the match was found: `position`, `name`, `WordNet id`, `index` or `class_map`.
        why_not: Why there is no match; empty if there is one.
        guess: The assumption made, for a warning; empty if the match is certain.
    """

    outputs: int
    order: Mapping[int, int] | None = None
    by: str = "position"
    why_not: str = ""
    guess: str = ""

    def arrange(self, logits: Tensor) -> Tensor:
        """Reorders logits (batch, outputs): label i in column i, other outputs in the remaining columns."""
        if self.order is None:
            return logits
        chosen = set(self.order.values())
        rest = (output for output in range(self.outputs) if output not in chosen)
        columns = [
            self.order[label] if label in self.order else next(rest)
            for label in range(self.outputs)
        ]
        return logits[:, torch.tensor(columns, device=logits.device)]

    def labels(self, predictions: Tensor) -> Tensor:
        """Returns the labels of predicted outputs (batch,); -1 for outputs without a class in the data."""
        if self.order is None:
            return predictions
        table = torch.full((self.outputs,), -1, dtype=torch.int64, device=predictions.device)
        for label, output in self.order.items():
            table[output] = label
        return table[predictions]

    def names(self, classes: Sequence[str]) -> dict[int, str]:
        """The name of each label, from the names of the model's outputs."""
        if self.order is None or not classes:
            return dict(enumerate(classes))
        return {label: classes[output] for label, output in self.order.items()}

    def describe(self) -> dict[str, Any]:
        """Describes the match for a result's provenance."""
        found: dict[str, Any] = {"outputs": self.outputs}
        if self.why_not:
            return found | {"not_compared": self.why_not}
        order = None if self.order is None else dict(self.order)
        return found | {"matched_by": self.by, "order": order, "guess": self.guess or None}


def match_classes(
    model: Model,
    classes: Sequence[str] | Mapping[int, str],
    outputs: int,
    labels: Tensor | None = None,
    class_map: ClassMap = None,
) -> ClassMatch:
    """Finds the model output that corresponds to each class of some data, if the match is certain.

    It tries, in this order:

    - `class_map`, if given;
    - the position, if the model has as many outputs as the data has classes, unless their names differ
      (a guess if the names sort differently by their numbers: `10` is before `2` in a folder);
    - the name, if each name of the data is that of one output (case, `_` and `-` are ignored; for
      `tench, Tinca tinca`, either synonym matches);
    - the WordNet id, for the classes of ImageNet;
    - the index, if the data's classes are named by numbers.

    `classes` are the names of the data's classes, in the order of their labels or by label; empty if they
    have none. `labels` are those that are known.

    Example:
        >>> match_classes(torch.nn.Identity(), ["2", "0"], 3).order
        {0: 2, 1: 0}
    """
    names = dict(classes if isinstance(classes, Mapping) else enumerate(classes))
    named = tuple(map(str, getattr(model, "classes", None) or ()))
    if len(named) not in (0, outputs):
        why = f"the model names {len(named)} classes and has {outputs} outputs"
        return ClassMatch(outputs, why_not=why)
    if class_map is not None:
        return _mapped(class_map, named, names, outputs, labels)
    if _declared(model) == 0:
        return ClassMatch(outputs, why_not="the model has no classifier (its num_classes is 0)")
    if not names:
        declared = bool(named) or _declared(model) == outputs
        return _unnamed(outputs, labels, declared)
    if max(names) >= outputs:
        beyond = f"label {max(names)} is beyond the model's {outputs} outputs"
        few = f"the data has {len(names)} classes and the model {outputs} outputs"
        return ClassMatch(outputs, why_not=few if len(names) > outputs else beyond)
    dense = [names.get(label) for label in range(outputs)]
    if list(named) == dense:
        return ClassMatch(outputs)
    if not named and len(names) == outputs:
        return ClassMatch(outputs, guess=_guessed_order(list(names.values())))
    return _by_name(model, named, names, outputs)


def correct(output: object, labels: Tensor, asker: str, match: ClassMatch | None = None) -> Tensor:
    """Whether each prediction is correct, as a boolean tensor (batch,).

    `asker` is the feature that needs the logits, for the message; `match` the output of each label.
    """
    logits = required_logits(output, len(labels), asker, match.outputs if match else None)
    if match is not None:
        logits = match.arrange(logits)
    if int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"label {int(labels.max())} is out of range: the model has {logits.shape[1]} classes"
        )
    return predicted(logits) == labels


def predicted(logits: Tensor) -> Tensor:
    """The output with the highest logit for each sample (batch,); `DataError` for a NaN."""
    if bool(logits.isnan().any()):
        raise DataError(
            f"the model's output is NaN for {int(logits.isnan().any(1).sum())} of {len(logits)} samples; "
            "check its weights and the images"
        )
    return logits.argmax(1)


def _format(output: object) -> str:
    """The shape and type of an output, or of its parts, for messages."""
    if isinstance(output, Tensor):
        kind = "" if output.is_floating_point() else f" of {output.dtype}"
        return f"{tuple(output.shape)}{kind}"
    parts = [f"{name} {_format(part)}" for name, part in named_parts(output)]
    return type(output).__name__ + (f" with {some_of(parts, 4)}" if parts else "")


def _is_logits(value: object, samples: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 2
        and len(value) == samples
        and value.shape[1] > 1
    )


def _declared(model: Model) -> int | None:
    """The number of classes that a model declares."""
    declared = getattr(module_of(model), "num_classes", None)
    return declared if isinstance(declared, int) else None


def _unnamed(outputs: int, labels: Tensor | None, declared: bool) -> ClassMatch:
    """Matches unnamed labels: label i is output i if the number of outputs fits the observed labels."""
    if labels is None or not len(labels):
        if declared:
            return ClassMatch(outputs)
        return ClassMatch(outputs, guess=f"labels are assumed to be the model's {outputs} outputs")
    low, high = int(labels.min()), int(labels.max())
    if high >= outputs:
        counted = "; labels are counted from 0" if low == 1 and high == outputs else ""
        why = f"label {high} is beyond the model's {outputs} outputs{counted}"
        return ClassMatch(outputs, why_not=why)
    guess = ""
    if low == 1 and (1 - 1 / outputs) ** len(labels) < _RARE:
        guess = "no sample has label 0: labels are assumed to be counted from 0, not from 1"
    if declared or high == outputs - 1:
        return ClassMatch(outputs, guess=guess)
    if ((high + 1) / outputs) ** len(labels) < _RARE:
        why = (
            f"the model has {outputs} outputs, and no label of {len(labels)} samples is above "
            f"{high}, so these may be an embedding instead of logits of the classes"
        )
        return ClassMatch(outputs, why_not=why)
    taken = f"labels up to {high} are assumed to be the first of the model's {outputs} outputs"
    return ClassMatch(outputs, guess="; ".join(filter(None, (taken, guess))))


def _guessed_order(names: Sequence[str]) -> str:
    """What is assumed about classes in alphabetical order that their numbers would order differently."""
    by_number = sorted(
        names, key=lambda name: [int(x) if x.isdecimal() else x for x in _DIGITS.split(name)]
    )
    if list(names) != sorted(names) or by_number == list(names):
        return ""
    at = next(at for at, name in enumerate(by_number) if names[at] != name)
    return (
        f"classes are in alphabetical order ({names[at]!r} is class {at}, not {by_number[at]!r}), and the "
        "model's outputs, which have no names, are assumed to have the same order"
    )


def _by_name(
    model: Model, named: Sequence[str], names: Mapping[int, str], outputs: int
) -> ClassMatch:
    classes = list(names.values())
    ways = {
        "name": _outputs_by_name(named),
        "WordNet id": _outputs_by_wordnet(model, classes, outputs),
        "index": {str(output): output for output in range(outputs)},
    }
    if named:
        del ways["index"]
    for by, known in ways.items():
        found = [known.get(_plain(name)) for name in classes]
        order = [one for one in found if one is not None]
        if len(order) == len(classes) == len(set(order)):
            return ClassMatch(outputs, dict(zip(names, order, strict=True)), by)
    if not named:
        why = (
            f"the data has {len(classes)} classes and the model {outputs} outputs without names, "
            "which may be an embedding"
        )
        return ClassMatch(outputs, why_not=why)
    unknown = [name for name in classes if _plain(name) not in ways["name"]] or classes
    why = f"the model has no class, or several, by the name of {some_of(unknown, 3)}"
    return ClassMatch(outputs, why_not=why)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _outputs_by_name(named: Sequence[str]) -> dict[str, int]:
    """The output of each name, and of each synonym in it, that belongs to only one output."""
    parts = [{_plain(part) for part in (name, *name.split(","))} for name in named]
    count = Counter(part for some in parts for part in some)
    return {part: at for at, some in enumerate(parts) for part in some if count[part] == 1}


def _outputs_by_wordnet(model: Model, classes: Sequence[str], outputs: int) -> dict[str, int]:
    """The output of each WordNet id, for a model of one of the ImageNet class sets."""
    if not all(map(_WORDNET.fullmatch, classes)):
        return {}
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = "imagenet-1k" if outputs == 1000 else None
    if hasattr(module := module_of(model), "pretrained_cfg"):
        subset = infer_imagenet_subset(module) or subset
    if subset is None:
        return {}
    names = ImageNetInfo(subset).label_names()
    return {name: at for at, name in enumerate(names)} if len(names) == outputs else {}


def _mapped(
    class_map: Mapping[str | int, str | int] | str,
    named: Sequence[str],
    names: Mapping[int, str],
    outputs: int,
    labels: Tensor | None,
) -> ClassMatch:
    highest = -1 if labels is None or not len(labels) else int(labels.max())
    names = names or {label: str(label) for label in range(highest + 1)}
    count = max(names, default=-1) + 1
    if isinstance(class_map, str):
        if class_map != "index":
            raise OptionError(f"class_map must be a mapping or 'index', not {class_map!r}")
        if count > outputs:
            raise OptionError(
                f"class_map='index' was requested, and the data has a label {count - 1} where the model "
                f"has {outputs} outputs"
            )
        return ClassMatch(outputs, by="class_map")
    if not isinstance(class_map, Mapping):
        raise OptionError(f"class_map must be a mapping or 'index', not {type(class_map).__name__}")
    own = list(names.values())
    asked = {str(name): output for name, output in class_map.items()}
    by_name = set(asked) & set(own) and any(isinstance(key, str) for key in class_map)
    keys = own if by_name else list(map(str, names))
    if unknown := [name for name in asked if name not in keys]:
        matches = close_matches(unknown[0], own, what="class")
        raise OptionError(
            f"class_map names {unknown[0]!r}, which the data does not have; {matches}"
        )
    if missing := [name for name in keys if name not in asked]:
        raise OptionError(
            f"class_map has no output for {some_of(missing, 3)}; assign one to each class"
        )
    order = {
        label: _output(asked[key], named, outputs) for label, key in zip(names, keys, strict=True)
    }
    if len(set(order.values())) < len(order):
        raise OptionError("class_map assigns the same output to several classes")
    return ClassMatch(outputs, order, "class_map")


def _output(asked: str | int, named: Sequence[str], outputs: int) -> int:
    if isinstance(asked, str):
        known = _outputs_by_name(named)
        if _plain(asked) not in known:
            matches = close_matches(asked, named, what="class")
            raise OptionError(f"class_map asks for {asked!r}, no class of the model; {matches}")
        return known[_plain(asked)]
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < outputs:
        raise OptionError(f"class_map asks for the output {asked!r} of {outputs}")
    return asked
