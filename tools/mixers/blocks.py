"""The blocks that a sequence mixer may stand in (arXiv:2312.00752, table 1 and figure 3)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mamba_export.models.mixer import DepthwiseConv
from mamba_export.operators import causal_conv1d
from mixers.mixer import SequenceMixer

MakeMixer = Callable[[int], SequenceMixer]
"""(channels) -> a mixer."""

BlockState = list[Tensor]


class Block(nn.Module):
    """A block: ``forward(x, state) -> y, state`` with x and y (batch, length, d_model).

    Args:
        d_model: width.
        projected: width of in_proj's output.
        d_inner: channels of the mixer.
        make: the mixer's maker.
        convolved: channels of the short causal convolution; 0 for none.
    """

    def __init__(
        self, d_model: int, projected: int, d_inner: int, make: MakeMixer, convolved: int
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, projected, bias=False)
        self.conv1d = DepthwiseConv(convolved, 4, bias=True) if convolved else None
        self.mixer = make(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> BlockState:
        """What a sequence that is read in parts starts from: of the convolution, if any, and of the mixer."""
        state = [self.mixer.initial_state(batch)]
        if self.conv1d is not None:
            channels, _, taps = self.conv1d.weight.shape
            state.insert(0, self.conv1d.weight.new_zeros(batch, channels, taps - 1))
        return state

    def growing(self) -> list[int | None]:
        """Of each tensor of the state the axis along which it grows, or None."""
        return [None] * (self.conv1d is not None) + [self.mixer.grows]

    def forward(self, x: Tensor, state: BlockState | None = None) -> tuple[Tensor, BlockState]:
        """See ``SequenceMixer.forward``, of which this has the arguments and results."""
        raise NotImplementedError

    def _convolve(
        self, x: Tensor, state: BlockState | None, *, silu: bool
    ) -> tuple[Tensor, Tensor]:
        assert self.conv1d is not None
        weight = self.conv1d.weight.squeeze(1)
        past = None if state is None else state[0]
        return causal_conv1d(x, weight, self.conv1d.bias, past, silu=silu)

    def _mix(self, u: Tensor, state: BlockState | None) -> tuple[Tensor, BlockState]:
        y, after = self.mixer(u, None if state is None else state[-1])
        return y, [] if after is None else [after]


class UngatedBlock(Block):
    """No gate: projection, mixer, GELU, projection."""

    def __init__(self, d_model: int, d_inner: int, make: MakeMixer) -> None:
        super().__init__(d_model, d_inner, d_inner, make, 0)

    def forward(self, x: Tensor, state: BlockState | None = None) -> tuple[Tensor, BlockState]:
        y, after = self._mix(self.in_proj(x), state)
        return self.out_proj(F.gelu(y)), after


class H3Block(Block):
    """H3's and Hyena's: y = q * mixer(k * v), each of q, k and v behind a short convolution.

    Fu et al. 2023, arXiv:2212.14052, which convolves k alone; arXiv:2302.10866 convolves all three, as here.
    """

    def __init__(self, d_model: int, d_inner: int, make: MakeMixer) -> None:
        super().__init__(d_model, 3 * d_inner, d_inner, make, 3 * d_inner)

    def forward(self, x: Tensor, state: BlockState | None = None) -> tuple[Tensor, BlockState]:
        convolved, conv = self._convolve(self.in_proj(x), state, silu=False)
        q, k, v = convolved.chunk(3, dim=-1)
        y, after = self._mix(k * v, state)
        return self.out_proj(q * y), [conv, *after]


class MambaBlock(Block):
    """Mamba's: y = mixer(SiLU(convolution(u))) * SiLU(z)."""

    def __init__(self, d_model: int, d_inner: int, make: MakeMixer) -> None:
        super().__init__(d_model, 2 * d_inner, d_inner, make, d_inner)

    def forward(self, x: Tensor, state: BlockState | None = None) -> tuple[Tensor, BlockState]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = self._convolve(u, state, silu=True)
        y, after = self._mix(u, state)
        return self.out_proj(y * F.silu(z)), [conv, *after]


BLOCKS: dict[str, Callable[[int, int, MakeMixer], Block]] = {
    "ungated": UngatedBlock,
    "h3": H3Block,
    "mamba": MambaBlock,
}
