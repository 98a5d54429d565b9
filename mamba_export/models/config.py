"""What the configurations of all models share: sizes, options, the rules of their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from mamba_export.contract.spec import Operator
from mamba_export.errors import MambaExportError
from mamba_export.fields import END_TOKENS, LARGEST_SIZE, Boolean, Integer, Number, OrNone, Rule
from mamba_export.given import shown

Config = TypeVar("Config", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a language model or backbone: what ``MambaConfig`` and ``Mamba2Config`` share.

    Args:
        d_model: width of the residual stream.
        n_layer: number of blocks.
        vocab_size: rows of the embedding, padding included; 0 for a backbone without tokens.
        d_state: states a channel (N in the papers).
        d_conv: taps of the causal convolution, at least 2.
        expand: d_inner = expand * d_model where d_inner is not given.
        d_inner: channels of the scan, or None.
        bias: in_proj and out_proj carry a bias.
        conv_bias: the convolution carries a bias.
        norm_epsilon: epsilon of every RMSNorm with a weight.
        tie_embeddings: the output projection is the embedding.
        residual_in_fp32: keep the residual stream in fp32 whatever the weights' dtype.
        dt_min, dt_max, dt_floor: bounds of the step size at initialisation (arXiv:2312.00752, section 3.6).
        eos_token_id: token that ends a text, several of which any one does, or None.

    Raises:
        MambaExportError: a value is out of range; the message names it.
    """

    d_model: int
    n_layer: int
    vocab_size: int = 0
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    d_inner: int | None = None
    bias: bool = False
    conv_bias: bool = True
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    residual_in_fp32: bool = True
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_floor: float = 1e-4
    eos_token_id: int | tuple[int, ...] | None = None

    mixer: ClassVar[str]
    """Which block the layers have: "mamba" or "mamba2"."""
    operator: ClassVar[Operator]
    """The block's sequence operator: its row says which dtypes the recurrent state may have."""
    RULES: ClassVar[dict[str, Rule[Any]]] = {
        "d_model": Integer(1),
        "n_layer": Integer(1),
        "vocab_size": Integer(0),
        "d_state": Integer(1),
        "d_conv": Integer(2),
        "expand": Integer(1),
        "d_inner": OrNone(Integer(1)),
        "bias": Boolean(),
        "conv_bias": Boolean(),
        "norm_epsilon": Number(0),
        "tie_embeddings": Boolean(),
        "residual_in_fp32": Boolean(),
        "dt_min": Number(above=0),
        "dt_max": Number(above=0),
        "dt_floor": Number(0),
        "eos_token_id": END_TOKENS,
    }
    """What each field must be."""

    def __post_init__(self) -> None:
        for name, rule in self.RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise MambaExportError(f"config: {name} is {shown(value)}, expected {rule}")
        if self.inner > LARGEST_SIZE:
            raise MambaExportError(
                f"config: d_model {self.d_model} times expand {self.expand} is more than {LARGEST_SIZE}"
            )

    @property
    def inner(self) -> int:
        """Channels of the scan, resolved."""
        return self.d_inner if self.d_inner is not None else self.expand * self.d_model

    @property
    def conv_channels(self) -> int:
        """Channels of the causal convolution."""
        raise NotImplementedError

    @property
    def recurrent_shape(self) -> tuple[int, ...]:
        """Shape of a sequence's recurrent state, without the batch."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, int | str]:
        """What two configurations of one checkpoint agree in, resolved: shapes follow from it."""
        return {
            "mixer": self.mixer,
            "d_model": self.d_model,
            "n_layer": self.n_layer,
            "vocab_size": self.vocab_size,
            "d_inner": self.inner,
            "d_state": self.d_state,
            "d_conv": self.d_conv,
        }

    def replace(self: Config, **changes: object) -> Config:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def of(cls: type[Config], config: object) -> Config:
        """A configuration, checked to be one of this class. MambaExportError for anything else."""
        if not isinstance(config, cls):
            raise MambaExportError(
                f"config is of type {type(config).__name__}: give a {cls.__name__}"
            )
        return config

    def to_fields(self) -> dict[str, Any]:
        """Its fields, and "mixer", which says whose they are: what files hold."""
        return {"mixer": self.mixer, **dataclasses.asdict(self)}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> ModelConfig:
        """A configuration from its fields, as ``to_fields`` gives them; without "mixer" they are of Mamba-1.

        Raises:
            MambaExportError: a field is missing, unknown or out of range.
        """
        kinds = {kind.mixer: kind for kind in ModelConfig.__subclasses__()}
        mixer = fields.get("mixer", "mamba")
        if not isinstance(mixer, str) or mixer not in kinds:
            raise MambaExportError(
                f"config: mixer is {shown(mixer)}, expected one of {', '.join(sorted(kinds))}"
            )
        given = {name: value for name, value in fields.items() if name != "mixer"}
        known = {field.name: field for field in dataclasses.fields(kinds[mixer])}
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise MambaExportError(f"config: {shown(unknown[0])} is no field")
        for name, field in known.items():
            if field.default is dataclasses.MISSING and name not in given:
                raise MambaExportError(f"config: {name} is missing")
        return kinds[mixer](**given)

    @classmethod
    def published(cls: type[Config], size: str) -> Config:
        """Configuration of a published checkpoint, by its size.

        Raises:
            MambaExportError: the size is unknown.
        """
        sizes = cls._published_sizes()
        if not isinstance(size, str) or size not in sizes:
            raise MambaExportError(
                f"unknown size {shown(size)}: the published ones are {', '.join(sizes)}"
            )
        return sizes[size]

    @classmethod
    def _published_sizes(cls: type[Config]) -> dict[str, Config]:
        raise NotImplementedError
