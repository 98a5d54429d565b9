"""The training loop: AdamW under a cosine, dropout on what each block adds, an average of the weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.errors import MambaExportError
from mamba_export.models import LayerState, MambaLM, Mixer, ModelConfig
from training.data import Split, Windows
from training.evaluate import bits_per_byte
from training.stepper import (
    Optimisation,
    Stepper,
    learning_rate,
    parameter_groups,
    progress_of,
)


@dataclass(frozen=True, kw_only=True)
class Recipe(Optimisation):
    """Everything that decides how a language model is trained.

    Args:
        length: bytes in each of a step's windows.
        dropout: share of each mixer's output that is dropped.
        locked_dropout: drop the same channels at every step of a window (as AWD-LSTM does).
        token_dropout: share of the input bytes whose embedding is zeroed.
        ema: decay of the moving average of the weights, a step; 0 for none.
        carry: windows follow each other in the text and the state is carried between them.
        reset: share of the windows that start from a zero state all the same.
        evaluations: how often the validation text, if there is one, is evaluated.
        compile: torch.compile the model.
    """

    steps: int = 2000
    batch: int = 32
    lr: float = 4e-3
    lr_floor: float = 0.01
    warmup: int = 300
    weight_decay: float = 1.0
    length: int = 1024
    dropout: float = 0.15
    locked_dropout: bool = False
    token_dropout: float = 0.05
    ema: float = 0.999
    carry: bool = True
    reset: float = 0.03
    evaluations: int = 20
    compile: bool = False


@dataclass
class Trained:
    """Result of ``train``.

    model: the chosen weights, fp32, in eval mode.
    chosen: which weights they are, and from which step: {"weights": "ema" or "last", "step": int}.
    train_bits_per_byte: mean of the last tenth of the training, dropout on.
    validation_bits_per_byte: of the chosen weights, or None without a validation text.
    steps, seconds: what the training took; seconds include the evaluations.
    log: what was logged: {"step", "seconds", "train_bits_per_byte", ...} each.
    """

    model: MambaLM
    chosen: dict[str, Any]
    train_bits_per_byte: float
    validation_bits_per_byte: float | None
    steps: int
    seconds: float
    log: list[dict[str, Any]]


def train(
    config: ModelConfig,
    recipe: Recipe,
    split: Split,
    device: torch.device,
    *,
    report: Callable[[dict[str, Any]], None] = lambda entry: None,
    log_file: TextIO | None = None,
) -> Trained:
    """Train a byte-level language model on ``split.train``.

    Without a validation text nothing is selected: the result is the average of the weights (the last
    weights where ``ema`` is 0) after the last step. With one, it is whichever of the two, at whichever
    evaluation, did best on it. ``split.held_out`` is not looked at.

    Args:
        report: is called with each log entry, about a hundred of them or one in 50 steps.
        log_file: gets each entry as one line of JSON.

    Raises:
        MambaExportError: the text is shorter than a window, or the loss stops being a number.
    """
    torch.manual_seed(recipe.seed)
    windows = Windows(
        split.train,
        recipe.batch,
        recipe.length,
        carry=recipe.carry,
        seed=recipe.seed,
        device=device,
    )
    model = MambaLM(config).to(device).train()
    stepper = _WindowStepper(model, recipe, windows)
    average = Average(model, recipe.ema)
    best: tuple[float, dict[str, Any], dict[str, Tensor]] | None = None
    log: list[dict[str, Any]] = []
    log_every = max(1, min(50, recipe.steps // 100))
    evaluate_every = 1 / max(1, recipe.evaluations)
    next_evaluation, logged_at, begin = evaluate_every, 0, time.monotonic()
    step, progress = 0, 0.0
    with dropout(model, recipe):
        while progress < 1:
            stepper.step(learning_rate(step, progress, recipe))
            average.update(step)
            step += 1
            progress = progress_of(step, time.monotonic() - begin, recipe)
            if step % log_every != 0 and progress < 1:
                continue
            loss = stepper.read_loss() / (step - logged_at) / math.log(2)
            logged_at = step
            if not math.isfinite(loss):
                raise MambaExportError(f"the loss is {loss} at step {step}: use a smaller --lr")
            seconds = time.monotonic() - begin
            entry: dict[str, Any] = {
                "step": step,
                "seconds": round(seconds, 3),
                "progress": round(min(progress, 1.0), 4),
                "train_bits_per_byte": round(loss, 5),
                "bytes_per_second": round(step * recipe.batch * recipe.length / seconds),
            }
            if split.validation and progress >= min(next_evaluation, 1.0):
                next_evaluation = progress + evaluate_every
                best = _validate(model, average, split.validation, step, entry, best)
            log.append(entry)
            if log_file is not None:
                print(json.dumps(entry), file=log_file, flush=True)
            report(entry)
    seconds = time.monotonic() - begin

    chosen: dict[str, Any]
    if best is not None:
        validation, chosen, weights = best
        model.load_state_dict(weights)
    else:
        validation, chosen = None, {"weights": "ema" if recipe.ema else "last", "step": step}
        if recipe.ema:
            model.load_state_dict(average.model.state_dict())
    tail = [entry["train_bits_per_byte"] for entry in log[-max(1, len(log) // 10) :]]
    return Trained(
        model=model.eval(),
        chosen=chosen,
        train_bits_per_byte=sum(tail) / len(tail),
        validation_bits_per_byte=validation,
        steps=step,
        seconds=seconds,
        log=log,
    )


def _validate(
    model: MambaLM,
    average: Average,
    text: bytes,
    step: int,
    entry: dict[str, Any],
    best: tuple[float, dict[str, Any], dict[str, Tensor]] | None,
) -> tuple[float, dict[str, Any], dict[str, Tensor]]:
    """Evaluate both sets of weights, note the figures in ``entry``, return the better of all so far."""
    candidates = {"last": model}
    if average.decay > 0:
        candidates["ema"] = average.model
    for name, candidate in candidates.items():
        value = bits_per_byte(candidate, text)
        key = "validation_bits_per_byte" + ("_ema" if name == "ema" else "")
        entry[key] = round(value, 5)
        if best is None or value < best[0]:
            weights = {key: tensor.clone() for key, tensor in candidate.state_dict().items()}
            best = (value, {"weights": name, "step": step}, weights)
    assert best is not None
    return best


class Average:
    """Exponential moving average of a model's weights, short at the start and ``decay`` later."""

    def __init__(self, model: MambaLM, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._target: list[Tensor] = list(self.model.parameters())
        self._source: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights after ``step`` (from 0)."""
        if self.decay > 0:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._target, self._source, 1 - decay)


@contextmanager
def dropout(model: MambaLM, recipe: Recipe) -> Iterator[None]:
    """Dropout on every mixer's output and on whole input bytes, as hooks: the model itself has none."""

    def drop_mixer(module: nn.Module, args: tuple, output: tuple[Tensor, LayerState]):
        y, state = output
        if not recipe.locked_dropout:
            return F.dropout(y, recipe.dropout, module.training), state
        mask = F.dropout(y.new_ones(y.shape[0], 1, y.shape[2]), recipe.dropout, module.training)
        return y * mask, state

    def drop_token(module: nn.Module, args: tuple, output: Tensor):
        if not module.training:
            return output
        return output * (torch.rand_like(output[..., :1]) >= recipe.token_dropout)

    handles = []
    if recipe.dropout > 0:
        mixers = [module for module in model.modules() if isinstance(module, Mixer)]
        handles += [mixer.register_forward_hook(drop_mixer) for mixer in mixers]
    if recipe.token_dropout > 0:
        handles.append(model.embeddings.register_forward_hook(drop_token))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _WindowStepper:
    """Steps on windows of a text, with the state of one carried to the next."""

    def __init__(self, model: MambaLM, recipe: Recipe, windows: Windows) -> None:
        self._recipe = recipe
        self._windows = windows
        self._model = torch.compile(model) if recipe.compile else model
        device = model.embeddings.weight.device
        # Static tensors: what a captured graph reads and writes.
        self._ids = torch.zeros(recipe.batch, recipe.length + 1, dtype=torch.long, device=device)
        compute = torch.bfloat16 if recipe.bf16 else torch.float32
        self._state = [
            LayerState(conv.to(compute), recurrent)
            for conv, recurrent in model.initial_state(recipe.batch)
        ]
        self._keep = torch.zeros(recipe.batch, device=device)
        self._generator = torch.Generator(device).manual_seed(recipe.seed + 1)
        self._stepper = Stepper(
            self._loss,
            # The head is the embedding, which has no decay.
            parameter_groups(model, recipe.weight_decay, within=model.backbone),
            device,
            recipe,
        )
        self.read_loss = self._stepper.read_loss
        """Sum of the losses (nats a byte) of the steps since the last call. Waits for the device."""

    def step(self, lr: float) -> None:
        """One step at learning rate ``lr``."""
        ids, new_pass = self._windows.next()
        self._ids.copy_(ids)
        if new_pass:
            self._keep.zero_()
        else:
            self._keep.uniform_(generator=self._generator)
            torch.ge(self._keep, self._recipe.reset, out=self._keep)
        self._stepper.step(lr)

    def _loss(self) -> Tensor:
        state = [LayerState(*map(self._kept, layer)) for layer in self._state]
        logits, new_state = self._model(self._ids[:, :-1], state)
        if self._recipe.carry:
            with torch.no_grad():
                for old, new in zip(self._state, new_state, strict=True):
                    old.conv.copy_(new.conv)
                    old.recurrent.copy_(new.recurrent)
        return F.cross_entropy(logits.flatten(0, 1).float(), self._ids[:, 1:].flatten())

    def _kept(self, state: Tensor) -> Tensor:
        """A state, zero in the windows that start anew."""
        return state * self._keep.to(state.dtype).view(-1, *[1] * (state.dim() - 1))
