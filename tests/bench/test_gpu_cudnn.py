# SPDX-License-Identifier: Apache-2.0
"""cudnn's own deterministic backward pass, by a made-up library that computes what it is asked for."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from earnest.bench import gpu_attention_backward, gpu_cudnn
from earnest.bench.case import Absent
from earnest.bench.gpu_attention_shape import Shape


class NotSupported(Exception):
    pass


class Node:
    """A tensor of a graph."""

    def set_output(self, on: bool) -> "Node":
        self.output = on
        return self

    def set_dim(self, dim: list[int]) -> "Node":
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> "Node":
        self.stride = stride
        return self


class Graph:
    supported = True

    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert (io_data_type, intermediate_data_type, compute_data_type) == ("BFLOAT16", "FLOAT", "FLOAT")
        self.steps: list[str] = []

    def tensor_like(self, x: Any) -> Node:
        return Node()

    def sdpa_backward(
        self, *, name, q, k, v, o, dO, stats, attn_scale, use_causal_mask, use_deterministic_algorithm
    ):
        assert use_deterministic_algorithm is True
        self.given = (q, k, v, o, dO, stats)
        self.rest = {"scale": attn_scale, "is_causal": use_causal_mask}
        self.found = (Node(), Node(), Node())
        return self.found

    def validate(self): ...
    def build_operation_graph(self): ...
    def create_execution_plans(self, modes): ...
    def build_plans(self): ...
    def check_support(self):
        if not self.supported:
            raise NotSupported("no engine")

    def get_workspace_size(self) -> int:
        return 7

    def execute(self, arrays, room, *, handle):
        assert room.numel() == 7
        q, k, v, o, grad, stats = (arrays[node] for node in self.given)
        leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
        out = scaled_dot_product_attention(*leaves, **self.rest)
        torch.testing.assert_close(o.float(), out, atol=2e-2, rtol=0)
        assert stats.shape == (*q.shape[:3], 1)
        for node, x in zip(self.found, torch.autograd.grad(out, leaves, grad.float()), strict=True):
            assert (node.dim, node.stride) == (list(x.shape), list(arrays[node].stride()))
            arrays[node].copy_(x)


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    module: Any = types.ModuleType("cudnn")
    module.data_type = types.SimpleNamespace(BFLOAT16="BFLOAT16", HALF="HALF", FLOAT="FLOAT")
    module.heur_mode = types.SimpleNamespace(A="A", FALLBACK="FALLBACK")
    module.cudnnGraphNotSupportedError = NotSupported
    module.create_handle = lambda: "handle"
    module.set_stream = lambda handle, stream: None
    module.pygraph = type("Graph", (Graph,), {})

    def forward(q, k, v, bias, with_lse, dropout, is_causal):
        assert (bias, with_lse, dropout) == (None, True, 0.0)
        return scaled_dot_product_attention(q, k, v, is_causal=is_causal), torch.zeros(q.shape[:3]), None

    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", forward)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    return module.pygraph


@pytest.mark.parametrize("causal", [False, True])
def test_it_gets_what_it_wants(cudnn: type[Graph], causal: bool):
    shape = Shape((40, 40), 4, 4, 64, causal)
    problem = gpu_attention_backward.case(shape, device="cpu").problem(np.random.default_rng(0))
    checked = problem.reference.keywords["checked"]  # type: ignore[attr-defined]
    one = gpu_cudnn.backward(shape, lambda grads: gpu_attention_backward._parts(grads, shape, checked))
    found = one.outputs(one.build()(*one.prepare(*problem.inputs[0])))
    assert problem.error(found, problem.reference(*problem.inputs[0])) <= problem.tolerance


def test_where_it_has_no_plan_it_is_absent(cudnn: type[Graph]):
    cudnn.supported = False
    shape = Shape((40,), 4, 4, 64)
    with pytest.raises(Absent, match="cudnn, deterministic: no engine"):
        gpu_cudnn.backward(shape, list).prepare(*(torch.randn(40, 4, 64).bfloat16() for _ in range(4)))
