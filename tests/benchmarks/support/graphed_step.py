"""The gradient of a loss, on CUDA captured in one graph: small models are then not bound by Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
_WARM_UP = 3


class GraphedStep:
    """Computes a loss and its gradient. On CUDA it replays a graph, or warns and computes without one.

    Args:
        loss: A function of the batch that neither waits for the device nor draws random numbers.
        parameters: To be trained; each call replaces their gradients.
        example: A batch with the shapes of all later ones.
    """

    def __init__(
        self, loss: Callable[[dict[str, Tensor]], Tensor], parameters: Sequence[nn.Parameter], example: Batch
    ) -> None:
        self._loss, self._parameters = loss, parameters
        device = parameters[0].device
        self._inputs = {name: tensor.to(device, copy=True) for name, tensor in example.items()}
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            try:
                self._graph, self._output = self._capture()
            except RuntimeError as error:
                torch.cuda.synchronize()
                warnings.warn(f"no CUDA graph: {error}", stacklevel=2)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss () of a batch; the gradients are in `.grad` of the parameters."""
        for name, tensor in self._inputs.items():
            tensor.copy_(batch[name])
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._output

    def _step(self) -> Tensor:
        self._clear_gradients()
        loss = self._loss(self._inputs)
        loss.backward()
        return loss.detach()

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture a step, after some on another stream, as PyTorch asks."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self._clear_gradients()  # so that the graph's own memory holds them
        with torch.cuda.graph(graph):
            loss = self._step()
        return graph, loss
