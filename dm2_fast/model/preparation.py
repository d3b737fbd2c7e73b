"""A trained model made ready for inference, once per round and on a copy: the same logits, sooner.

The model is traced by torch.fx into a graph without Python state, so that several threads may run it. BatchNorm is
folded into the convolution before it (Jacob et al. 2018, section 3.2), images become channels_last, and on a CPU each
convolution with its activation is one oneDNN call on a weight that is laid out once: the operators that torch.compile
calls, without the half minute of compilation.
"""

import copy
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dm2_fast.model.functions import logits_in, run_module
from dm2_fast.model.together import Batch

# Features (the input of the head; None without one) and what the model returned, for one batch.
Run: TypeAlias = Callable[[Any], tuple[Tensor | None, Any]]

TOLERANCE = 1e-4  # of the largest logit, and of the largest feature
VERIFIED_ROWS = 8

# Rows per forward pass on a CPU: few, so that activations stay in the cache, but enough for LEAST_REUSE multiplications
# by each weight, so that reading the weights costs little beside the arithmetic.
LEAST_ROWS = 32
LEAST_REUSE = 128

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


@dataclass(frozen=True)
class Prepared:
    """How batches are run.

    Attributes:
        note: What was done, or "off" and why nothing was.
        run: From a batch to features and logits.
        head: The module of the model whose input the features are; None: there are no features.
        rows: Rows to be run at a time; None for as many as the caller likes.
        threads: Whether threads may run batches side by side, each with one thread of torch.
        channels_last: Whether batches should lie in memory like that.
    """

    note: str
    run: Run
    head: nn.Module | None = None
    rows: int | None = None
    threads: bool = False
    channels_last: bool = False


def plain(model: nn.Module, head: nn.Module | None) -> Run:
    """The model as it is."""

    def run(batch: Batch) -> tuple[Tensor | None, Any]:
        seen: list[Tensor] = []
        if head is None:
            return None, logits_in(run_module(model, batch))
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
        try:
            logits = logits_in(run_module(model, batch))
        finally:
            hook.remove()
        return seen[-1] if seen else None, logits

    return run


def prepare(model: nn.Module, head: nn.Module | None, few: Tensor, batch_size: int, pack: bool) -> Prepared:
    """Prepare a copy of the model; the model as it is, with the reason, where that fails or gives other values.

    Args:
        model: In eval mode.
        head: The module whose input is the feature vector; None if only logits are asked for.
        few: Rows of the pool, as the model takes them: VERIFIED_ROWS, or batch_size if that is less.
        batch_size: The most rows of a batch.
        pack: Whether oneDNN's convolutions may be used.
    """
    device = few.device.type
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), full_precision(device):
            return _prepare(model, head, few, batch_size, pack)
    except Exception as error:  # whatever a model may raise while it is copied, traced and run
        reason = f"{error}".strip().split("\n")[0]
        return Prepared(f"off: {reason or type(error).__name__}", plain(model, head), head)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Convolutions without TF32, so that what is compared is the preparation and not the rounding."""
    if device != "cuda":  # nothing to change for the whole process
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _prepare(model: nn.Module, head: nn.Module | None, rows: Tensor, batch_size: int, pack: bool) -> Prepared:
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name or 'the model'} has hooks")
    few = rows[:2]
    if any(
        tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
        for tensor in [few, *model.parameters()]
    ):
        raise ValueError("half precision")

    graph = _trace(model, head)
    folded = _fold(graph)
    graph.to(memory_format=torch.channels_last)
    shapes = _Shapes(graph)
    shapes.run(_channels_last(few))
    size, on_cpu = batch_size, few.device.type == "cpu"
    if on_cpu:
        weights = sum(parameter.numel() for parameter in graph.parameters() if parameter.ndim > 1)
        reuse = shapes.multiplications / len(few) / max(weights, 1)
        size = min(batch_size, LEAST_ROWS)
        while size < batch_size and size * reuse < LEAST_REUSE:
            size = min(2 * size, batch_size)
    packed = 0
    if pack and on_cpu and few.dtype == torch.float32 and torch._C._has_mkldnn:
        packed = _pack(graph, size / len(few))
    graph.graph.lint()
    graph.recompile()

    def run(batch: Tensor) -> tuple[Tensor | None, Tensor]:
        features, logits = graph(_channels_last(batch))
        return None if features is None else features.flatten(1), logits

    _verify(run, plain(model, head), rows[:size])
    parts = [f"{folded} BatchNorm folded"] * bool(folded) + [f"{packed} convolutions packed"] * bool(packed)
    note = ", ".join([*parts, "channels_last" if few.ndim == 4 else "traced", f"{size} rows at a time"])
    return Prepared(note, run, head, size, on_cpu, few.ndim == 4)


def _channels_last(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def _verify(run: Run, expected: Run, batch: Tensor) -> None:
    """Raise unless run gives what the plain model gives, also for a row among others than those of the batch."""
    half = (len(batch) + 1) // 2
    others = torch.cat([batch[:half], batch[:1].expand_as(batch[half:])])
    for name, ours, theirs in zip(("features", "logits"), run(others), expected(batch), strict=True):
        if ours is None or theirs is None:
            continue
        theirs = torch.cat([theirs[:half], theirs[:1].expand_as(theirs[half:])])
        difference, largest = (ours - theirs).abs().max(), theirs.abs().max()
        if ours.dtype != theirs.dtype or not difference <= TOLERANCE * largest:
            raise ValueError(f"{name} would differ by {difference.item():.1e} of {largest.item():.1e}")


class _Tracer(fx.Tracer):
    """Traces a module of its own and notes the input of its head.

    fx.Tracer.trace changes nn.Module for the whole process, which breaks whatever another thread runs meanwhile. Here
    the instances are changed: each has this tracer in place of its forward and a proxy in place of each parameter.
    """

    def __init__(self, root: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.root, self.head, self.features = root, head, None
        self.graph = fx.Graph(tracer_cls=type(self))
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{name}.{key}".lstrip(".")
            for name, module in root.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        }

    def run(self) -> fx.Graph:
        """The graph of the root's forward for one batch."""
        batch = self.create_proxy("placeholder", "batch", (), {})
        forward, proxies = self.root.forward, {}
        for name, parameter in self.root.named_parameters():
            proxies[parameter] = self.create_proxy("get_attr", name, (), {})
        replaced: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
        try:
            for module in self.root.modules():
                new: dict[str, Any] = {
                    name: proxies[value] for name, value in module._parameters.items() if value is not None
                }
                new["forward"] = partial(self._called, module, module.forward)
                replaced.append((vars(module), {key: vars(module)[key] for key in new if key in vars(module)}, new))
                vars(module).update(new)
            self.create_node("output", "output", (self.create_arg(forward(batch)),), {})
        finally:
            for instance, old, new in replaced:
                for key in new:
                    del instance[key]
                instance.update(old)
        for proxy in proxies.values():
            if not proxy.node.users:
                self.graph.erase_node(proxy.node)
        return self.graph

    def _called(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if module is self.head:
            self.features = args[0].node
        return self.call_module(module, forward, args, kwargs)


def _trace(model: nn.Module, head: nn.Module | None) -> fx.GraphModule:
    """A copy of the model as a graph that returns (features, logits)."""
    names = {module: name for name, module in model.named_modules()}
    copied = copy.deepcopy(model)
    tracer = _Tracer(copied, None if head is None else copied.get_submodule(names[head]))
    graph = fx.GraphModule(copied, tracer.run())  # the copy holds the parameters
    if head is not None and tracer.features is None:
        raise ValueError("the head is not part of the graph")
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    output.args = ((tracer.features, output.args[0]),)
    return graph


def _module(graph: nn.Module, node: object) -> nn.Module | None:
    """The module that a node calls."""
    return graph.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _fold(graph: fx.GraphModule) -> int:
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


class _Shapes(fx.Interpreter):
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


def _pack(graph: fx.GraphModule, grow: float) -> int:
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
