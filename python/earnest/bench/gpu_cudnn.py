# SPDX-License-Identifier: Apache-2.0
"""cudnn's deterministic backward pass, of which torch makes no use: by the package nvidia-cudnn-frontend,
over the library that torch has loaded. The forward pass and its log-sum-exp are those of torch's operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from earnest.bench import peers
from earnest.bench.case import Absent, Implementation
from earnest.bench.gpu_attention_peers import lengths_of, padded, unpadded
from earnest.bench.gpu_attention_shape import Shape

NAME = "cudnn, deterministic"
NUMBERS = {"bfloat16": "BFLOAT16", "float16": "HALF"}


def backward(shape: Shape, parts: Callable[[Sequence[Any]], list[Any]]) -> Implementation:
    """parts: of packed gradients those that are compared. Sequences are equal."""

    def prepare(*inputs: Any) -> tuple[Any, ...]:
        arrays = tuple(padded(x, lengths_of(shape, i in (1, 2))) for i, x in enumerate(inputs))
        return _Graph(shape, *arrays), *arrays

    def build() -> Callable[..., Any]:
        peers.load("cudnn", "nvidia-cudnn-frontend")
        return lambda graph, *arrays: graph()

    def outputs(grads: Any) -> list[Any]:
        return parts([unpadded(x, lengths_of(shape, i > 0)) for i, x in enumerate(grads)])

    return Implementation(NAME, build, prepare=prepare, outputs=outputs)


class _Graph:
    """cudnn's plan for one set of arrays [sequences, heads, tokens, dim]. Absent where it has none."""

    def __init__(self, shape: Shape, q: Any, k: Any, v: Any, grad: Any) -> None:
        import torch

        self._cudnn = peers.load("cudnn", "nvidia-cudnn-frontend")
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, shape.causal
        )
        stats = lse.view(*q.shape[:3], 1)
        kinds = self._cudnn.data_type
        self._handle = self._cudnn.create_handle()
        graph = self._cudnn.pygraph(
            io_data_type=getattr(kinds, NUMBERS[shape.dtype]),
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )
        given = dict(q=q, k=k, v=v, o=out, dO=grad, stats=stats)
        named = {name: graph.tensor_like(x) for name, x in given.items()}
        found = graph.sdpa_backward(
            name="backward",
            **named,
            attn_scale=shape.dim**-0.5,
            use_causal_mask=shape.causal,
            use_deterministic_algorithm=True,
        )
        self._grads = [torch.empty_like(x) for x in (q, k, v)]
        for one, array in zip(found, self._grads, strict=True):
            one.set_output(True).set_dim(list(array.shape)).set_stride(list(array.stride()))
        self._plan(graph)
        self._arrays = {named[name]: x for name, x in given.items()} | dict(
            zip(found, self._grads, strict=True)
        )
        self._room = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)
        self._graph = graph

    def _plan(self, graph: Any) -> None:
        modes = self._cudnn.heur_mode
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([modes.A, modes.FALLBACK])
            graph.check_support()
            graph.build_plans()
        except self._cudnn.cudnnGraphNotSupportedError as error:
            raise Absent(f"{NAME}: {str(error).strip()[:200]}") from None

    def __call__(self) -> list[Any]:
        import torch

        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream().cuda_stream)
        self._graph.execute(self._arrays, self._room, handle=self._handle)
        return self._grads
