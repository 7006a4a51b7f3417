"""The hook mechanism that records selected layers during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from types import TracebackType
from typing import Any, Literal, TypeAlias, cast, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from probekit.capture.capturing import Capturing
from probekit.capture.exploring import Exploring
from probekit.capture.functions import Interception, ended_interceptions
from probekit.capture.layers import Layer, runnable, uncompiled, unwrap
from probekit.capture.phase import Change, Reduce, Settings, Stop
from probekit.capture.pooling import pool
from probekit.capture.scout import Tokens as Tokens
from probekit.capture.scout import doubts
from probekit.capture.selection import LayerChoice, Selection
from probekit.checks import one_of
from probekit.errors import LayerError, ModelError, OptionError, warn
from probekit.models.image_model import Model, module_of
from probekit.models.inputs import call
from probekit.runtime.settings import caller_device

Layers: TypeAlias = "LayerChoice | Sequence[LayerChoice] | Sequence[Layer] | None"

_THREADS: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
"""The thread of each open recorder of a model."""


class Recorder:
    """Records selected layers of any module while it runs, without changing it.

    The first forward pass inside the context finds the calls, their order and the unit axis of each
    layer. Later passes only record, after all hooks of the user, which may change the output.

    Args:
        model: Any module or `ImageModel`. For modules wrapped by `torch.compile` or
            `DistributedDataParallel`, the original module is recorded; `recorder(x)` runs it eagerly.
        layers: Names, globs over names, modules, module types, predicates `(name, module) -> bool`, or
            several of them; `"!glob"` excludes. None selects every activation-function output except the
            classifier's, of modules and of functions. The second call of a module `relu` is the layer
            `relu_1`; `F.relu(x)` inside a module `block` is the layer `block.relu`.
        spatial: `"mean"` pools each map to one number per unit, giving (batch, units); `"none"` keeps
            (batch, units, *positions). Or a function from the latter to any tensor; its result is
            copied if it is a view of the layer's output.
        tokens: For sequences of tokens: `"all"`, only the `"patch"` tokens, or the `"class"` token.
        output: The index, key or field of the tensor to record from layers that return several;
            None selects the first floating-point tensor of two axes or more.
        grad: Keep the recorded tensors in the autograd graph.
        stop: End the forward pass at the last selected layer. Inside the context, `recorder(x)` then
            returns None; `module(x)` leaves the `with` block.
        change: A function from a layer and its output, (batch, units, *positions), to a replacement
            of the same shape; the replacement is recorded. The first forward pass, which finds the
            layers, is not changed unless planned layers are given.
        when: Called at the start of each forward pass; if it returns False, the pass is not
            recorded.
        subset: Selects the layers to record, called after the first forward pass has found them.

    Attributes:
        paused: While true, forward passes are not recorded.
        notes: After the first forward pass, messages about what is uncertain or missing, which are
            also issued as warnings.

    Raises:
        LayerError: A layer does not exist, is never called, or has no units; or another thread is
            recording the model.
        ModelError: `nn.DataParallel`.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> images, _ = pk.images_at(data, [0, 1])
        >>> with pk.Recorder(model, layers="layer3.*.relu2") as recorder:
        ...     _ = model(images)
        >>> {name: tuple(tensor.shape) for name, tensor in recorder.activations.items()}
        {'layer3.0.relu2': (2, 64), 'layer3.1.relu2': (2, 64), 'layer3.2.relu2': (2, 64)}
    """

    _reports_doubts = True

    def __init__(
        self,
        model: Model,
        layers: Layers = None,
        *,
        spatial: Literal["mean", "none"] | Reduce = "mean",
        tokens: Tokens = "all",
        output: int | str | None = None,
        grad: bool = False,
        stop: bool = False,
        change: Change | None = None,
        when: Callable[[], bool] | None = None,
        subset: Callable[[Sequence[Layer]], list[Layer]] | None = None,
    ) -> None:
        inner = module_of(model)
        if not callable(model) or inner is None:
            advice = "; load one by its name with pk.load_model" if isinstance(model, str) else ""
            raise ModelError(
                f"a model must be a torch.nn.Module, not {type(model).__name__}{advice}"
            )
        if isinstance(spatial, str) and spatial not in _REDUCTIONS:
            raise OptionError(f"spatial must be 'mean', 'none' or a function, not {spatial!r}")
        one_of("tokens", tokens, get_args(Tokens))
        self.module = unwrap(inner)
        self._run = runnable(model)
        self.paused = False
        self.notes: list[str] = []
        self._subset = subset
        self._activations: dict[str, Tensor] | None = None
        reduce = _REDUCTIONS[spatial] if isinstance(spatial, str) else spatial
        self._settings = Settings(
            reduce, tokens, grad, output, stop, change,
            when=lambda: self._begins(when),
        )  # fmt: skip
        self._functions = Interception(lambda name, result: self._phase.called(name, result))
        self._phase = self._first_phase(layers)

    def _first_phase(self, layers: Layers) -> Exploring | Capturing:
        choices = list(layers) if isinstance(layers, Sequence) else [layers]
        planned = [choice for choice in choices if isinstance(choice, Layer)]
        if planned and len(planned) < len(choices):
            raise OptionError("layers must be either planned layers or choices, not both")
        if planned:
            return self._capturing(planned)
        choice = cast("LayerChoice | Sequence[LayerChoice] | None", layers)
        selection = Selection(self.module, choice)
        return Exploring(self.module, self._settings, self._functions, selection, self._explored)

    def _capturing(self, layers: Sequence[Layer]) -> Capturing:
        return Capturing(self.module, self._settings, self._functions, layers, self._captured)

    def _begins(self, when: Callable[[], bool] | None) -> bool:
        """Whether to record the pass that begins; if so, the tensors of the pass before are released."""
        wanted = not self.paused and (when is None or when())
        if wanted:
            self._activations = None
        return wanted

    def _explored(self, exploring: Exploring, found: list[Layer], held: dict[str, Tensor]) -> None:
        """Ends the first pass; from now on, only the layers themselves are hooked."""
        exploring.unhook()
        sentences = doubts(found) if self._reports_doubts else []
        for sentence in sentences:
            warn(sentence)
        self.notes = exploring.notes + sentences
        chosen = found if self._subset is None else self._subset(found)
        self._phase = self._capturing(chosen)
        self._phase.hook()
        self._captured({layer.name: held[layer.name] for layer in chosen})

    def _captured(self, held: dict[str, Tensor]) -> None:
        self._activations = held

    @property
    def layers(self) -> list[Layer]:
        """The layers in execution order, known after the first forward pass."""
        return self._phase.layers if isinstance(self._phase, Capturing) else []

    @property
    def activations(self) -> dict[str, Tensor]:
        """The recorded tensors of the last forward pass by layer, in execution order."""
        if self._activations is None:
            raise LayerError(
                "nothing is recorded, because the module itself was not called, or its last forward pass "
                "failed; call the module (not its forward, a method or its compiled copy), or recorder(x)"
            )
        if any(_escaped(tensor) for tensor in self._activations.values()):
            raise LayerError(
                "the forward pass ran inside a torch.func transform such as vmap, outside which its "
                "activations are not valid; read them inside the transformed function and return them "
                "from it, or run each model or sample separately"
            )
        return self._activations

    def take(self) -> dict[str, Tensor] | None:
        """Returns the tensors of the last forward pass and releases them; None if there are none."""
        taken, self._activations = self._activations, None
        return taken

    def __enter__(self) -> Recorder:
        if self._phase.hooked:
            raise LayerError("this recorder is already in use; create a second one")
        threads = _THREADS.setdefault(self.module, [])
        if set(threads) - {get_ident()}:
            raise LayerError(
                "another thread is recording this model, and would record the passes of this thread too; "
                "give each thread its own copy (copy.deepcopy(model))"
            )
        self._phase.hook()
        self._thread = get_ident()
        threads.append(self._thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._phase.unhook()
        self._phase.held = {}
        _THREADS[self.module].remove(self._thread)
        return self._stopped(error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model on a copy of its inputs; returns its output, or None if `stop` ended the pass."""
        # The exit of a device context removes the innermost mode, so others have to end before.
        with uncompiled(), caller_device(), ended_interceptions():
            try:
                return call(self._run, *args, **kwargs)
            except Stop as stop:
                if not self._stopped(stop):
                    raise
                self._phase.leave_others()
                return None
            finally:
                self._phase.leave()

    def _stopped(self, error: BaseException | None) -> bool:
        """Whether this recorder, rather than another one on the same model, has ended the pass."""
        return isinstance(error, Stop) and error.args[0] is self._functions


def _escaped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a finished `torch.func` transform."""
    level: int = torch._C._functorch.maybe_get_level(tensor)
    running = torch._C._functorch.peek_interpreter_stack()
    return level >= 0 and (running is None or running.level() < level)


_REDUCTIONS: dict[str, Reduce] = {"mean": pool, "none": lambda maps: maps}
