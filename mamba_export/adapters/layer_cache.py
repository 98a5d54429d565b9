"""Where a mixer finds its states in mamba_ssm's ``inference_params``."""

from __future__ import annotations

from typing import Any


def states_of(
    mixer: Any, inference_params: Any, batch_size: int, initialize_states: bool = False
) -> Any:
    """The two states of a mixer, made at the first call.

    Args:
        mixer: has ``layer_idx`` and ``allocate_inference_cache``.
        inference_params: ``key_value_memory_dict`` has the states by layer.
        batch_size: sequences, for states that are made.
        initialize_states: set states that are there to 0.

    Returns:
        What ``allocate_inference_cache`` made.

    Raises:
        ValueError: the mixer has no layer_idx.
    """
    known = inference_params.key_value_memory_dict
    if mixer.layer_idx is None:
        raise ValueError(f"{type(mixer).__name__} with inference_params needs a layer_idx")
    if mixer.layer_idx not in known:
        known[mixer.layer_idx] = mixer.allocate_inference_cache(
            batch_size, inference_params.max_seqlen
        )
    elif initialize_states:
        for state in known[mixer.layer_idx]:
            if state is not None:
                state.zero_()
    return known[mixer.layer_idx]
