from __future__ import annotations

import pytest

from stages.training.worker_environment import worker_environment


@pytest.mark.parametrize(
    ("use_gpu", "given", "expected"),
    [
        (True, {"HOME": "/root"}, {"env_vars": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}),
        (True, {"PYTORCH_ALLOC_CONF": "x:1"}, {"env_vars": {"PYTORCH_ALLOC_CONF": "x:1"}}),
        (True, {"PYTORCH_CUDA_ALLOC_CONF": "x:1"}, {"env_vars": {"PYTORCH_CUDA_ALLOC_CONF": "x:1"}}),
        (False, {"PYTORCH_ALLOC_CONF": "x:1"}, {}),
        (False, {}, {}),
    ],
)
def test_the_allocator_is_the_user_s_or_has_segments_that_grow(
    use_gpu: bool, given: dict[str, str], expected: dict[str, object]
) -> None:
    assert worker_environment(use_gpu=use_gpu, environment=given) == expected
