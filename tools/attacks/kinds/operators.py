"""Our operators in PyTorch with tensors that do not fit: a ValueError of one line, and the process lives on."""

from __future__ import annotations

from typing import Any

from attacks.attempt import Attempt
from attacks.material import Place

_SIZES = (0, 1, 2, 3, 5, 17, 255, 257, 4096)


def odd_tensors(place: Place) -> Attempt:
    """A right call of an operator, of which one to three tensors or attributes are made odd."""
    import torch

    from mamba_export import contract
    from mamba_export.operators import find

    rng = place.rng
    spec = rng.choice((contract.SELECTIVE_SCAN, contract.CAUSAL_CONV1D, contract.MAMBA_LAYER))
    find(spec.torch_name)  # importing it defined the torch operators
    torch.manual_seed(rng.randrange(2**31))
    names = sorted({name for one in spec.inputs for axis in one.axes for name, _ in axis.terms})
    sizes = {name: rng.choice((2, 3, 4, 8)) for name in names}
    tensors: list[Any] = [
        torch.randn([axis.resolve(sizes) for axis in one.axes]) for one in spec.inputs
    ]
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        index = rng.randrange(len(tensors))
        tensors[index], what = _odd(rng, tensors[index])
        done.append(f"{spec.inputs[index].name} {what}")
    function = getattr(torch.ops.mamba_export, spec.torch_name)

    def call() -> Any:
        results = function(*tensors)
        return [tuple(one.shape) for one in (results if isinstance(results, tuple) else (results,))]

    return Attempt(
        f"{spec.name}: {'; '.join(done)}",
        call=call,
        may_raise=(ValueError, RuntimeError, TypeError, NotImplementedError),
    )


def _odd(rng: Any, tensor: Any) -> tuple[Any, str]:
    import torch

    if not isinstance(tensor, torch.Tensor):
        return tensor, "is odd already"
    way = rng.randrange(9)
    shape = list(tensor.shape)
    if way <= 2 and shape:
        axis = rng.randrange(len(shape))
        shape[axis] = rng.choice(_SIZES)
        return torch.randn(shape), f"has shape {shape}"
    if way == 3:
        return tensor[None], "has an axis more"
    if way == 4 and shape:
        return tensor.select(0, 0) if shape[0] else tensor, "has an axis less"
    if way == 5:
        dtype = rng.choice((torch.float64, torch.float16, torch.int32, torch.bool, torch.complex64))
        return tensor.to(dtype), f"is {dtype}"
    if way == 6:
        return None, "is None"
    if way == 7:
        return torch.empty_strided(shape, [0] * len(shape)), "is one number everywhere"
    return tensor.to("meta"), "is on the meta device"
