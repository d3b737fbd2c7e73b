"""A model as a graph of torch.fx, without Python state, so that several threads may run it."""

import builtins
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace

from dm2_fast import threads


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
            with _leaves():
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


@contextmanager
def _leaves() -> Iterator[None]:
    """Let functions that are marked by torch.fx.wrap become nodes of the graph.

    The mark is a name in a module, which all threads see. What stands there meanwhile calls the function unless it is
    given a proxy, so that whatever another thread runs stays what it is.
    """
    marked = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
    with threads.tracing():
        try:
            for (_, name), namespace in list(marked.items()):
                function = namespace.get(name)
                leaf = _leaf(function or getattr(builtins, name))
                namespace[name] = leaf
                replaced.append((namespace, name, leaf, function))
            yield
        finally:
            for namespace, name, leaf, function in reversed(replaced):
                if namespace.get(name) is leaf:
                    namespace[name] = function
                    if function is None:  # a builtin
                        del namespace[name]


def _leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as a node of the graph wherever it is given a proxy."""

    @wraps(function)
    def leaf(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []

        def look(value: Any) -> Any:
            if isinstance(value, fx.Proxy):
                proxies.append(value)
            return value

        fx.node.map_aggregate((args, kwargs), look)
        if proxies:
            return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return leaf


def trace(model: nn.Module, head: nn.Module | None) -> fx.GraphModule:
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
