"""Fewer and faster convolutions in a traced model: BatchNorm folded into them, and oneDNN's calls in their place."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Additions of two tensors; "add_" changes the first of them.
ADDITIONS = (operator.add, torch.add, "add", "add_")

# Activations that oneDNN applies within a convolution: (name, arguments) there.
ACTIVATIONS: dict[object, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    F.relu: ("relu", []),
    torch.relu: ("relu", []),
    "relu": ("relu", []),
    "relu_": ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    F.relu6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    F.silu: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    F.hardswish: ("hardswish", []),
}


def _module(graph: nn.Module, node: object) -> nn.Module | None:
    """The module that a node calls."""
    return graph.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def fold(graph: fx.GraphModule) -> int:
    """Fold BatchNorm into the convolution whose only user it is, and count."""
    count = 0
    for node in list(graph.graph.nodes):
        norm = _module(graph, node)
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        before = node.args[0]
        convolution = _module(graph, before)
        if type(convolution) is not nn.Conv2d or len(before.users) > 1:
            continue
        before.target = f"folded_{count}"
        graph.add_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        count += 1
    return count


class Shapes(fx.Interpreter):
    """Runs the graph, notes the shape of every value and counts the multiplications by weights."""

    multiplications = 0.0

    def run_node(self, node: fx.Node) -> Any:
        out = super().run_node(node)
        node.meta["shape"], node.meta["dtype"] = getattr(out, "shape", None), getattr(out, "dtype", None)
        module = _module(self.module, node)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            self.multiplications += module.weight.numel() * out.numel() / len(module.weight)
        return out


class _Convolution(nn.Module):
    """Convolution, bias, addition and activation in one call of oneDNN, on a weight that lies as oneDNN wants it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, shape: list[int]) -> None:
        super().__init__()
        self.geometry = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self.activation: tuple[str, list[float]] = ("none", [])
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        self.weight = reorder(convolution.weight.detach(), *self.geometry, shape)
        self.bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        out: Tensor
        name, arguments = self.activation
        weight = self.weight, self.bias, *self.geometry
        convolve = torch.ops.mkldnn._convolution_pointwise
        if addend is None:
            out = convolve(x, *weight, name, arguments, "")
        else:
            out = convolve.binary(x, addend, *weight, "add", 1.0, None if name == "none" else name, [], None)
        return out


def pack(graph: fx.GraphModule, grow: float) -> int:
    """Replace each convolution, with the addition and the activation that alone use it, by oneDNN's, and count.

    grow is how many times more rows a batch has than the one whose shapes the graph holds.
    """
    count = 0
    for node in list(graph.graph.nodes):
        convolution = _module(graph, node)
        if type(convolution) is not nn.Conv2d or convolution.padding_mode != "zeros":
            continue
        if isinstance(convolution.padding, str):
            continue
        before, *size = node.args[0].meta["shape"]
        packed = _Convolution(convolution, [round(before * grow), *size])
        node.target = f"packed_{count}"
        graph.add_submodule(node.target, packed)
        count += 1
        call: fx.Node = node
        user = _only_user(node)
        addend = None if user is None else _addend(user, node)
        if user is not None and addend is not None:
            user.op, user.target, user.args = "call_module", node.target, (node.args[0], addend)
            graph.graph.erase_node(node)
            call, user = user, _only_user(user)
        if user is None or user.args[0] is not call:
            continue
        module = _module(graph, user)
        activation = ACTIVATIONS.get(user.target if module is None else type(module))
        if activation is None or (addend is not None and activation[0] != "relu"):  # all that may follow an addition
            continue
        packed.activation = activation
        user.replace_all_uses_with(call)
        graph.graph.erase_node(user)
    return count


def _only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone uses a value that the graph does not return."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _addend(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """What user adds to the convolution of node, if that may be done in the convolution, at the place of user."""
    if user.op == "call_module" or user.target not in ADDITIONS or len(user.args) != 2 or user.kwargs:
        return None
    first, second = user.args
    addend = second if first is node else first
    if not isinstance(addend, fx.Node) or addend is node or (first is addend and user.target == "add_"):
        return None
    alike = all(addend.meta[name] == node.meta[name] for name in ("shape", "dtype"))
    # what uses the input too might change it before user runs
    alone = set(node.all_input_nodes[0].users) <= {node, user}
    return addend if alike and alone else None
