"""LARS as a torch optimizer: parameter groups, state, and the choice of the step that runs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastclr.optim.lars.reference import FORMS, reference_step
from pipelines.system.triton import why_no_triton

IMPLS = ("auto", "reference", "fused", "apex")


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as SimCLR's authors use it.

    The step of a weight is scaled to a fixed fraction η of the weight's own norm (`reference_step` has the equations).
    Parameters with fewer than two dimensions (biases and batch-norm scales) get neither decay nor adaptation, that is,
    plain momentum steps at the full rate.  A parameter group that sets `weight_decay` or `adapt` itself decides for all
    its parameters.  Decay and adaptation are independent, except in the form "port".

    `LARS(params, lr, form="port", exclude_vectors=False)` takes the same steps as LARS of lightly and timm with the
    same parameters, momentum, weight decay and trust coefficient (tested to 1e-7; their 1e-8 in the denominator
    matters only for gradients about as small).  With the default, `form="port"` equals theirs if vectors have their
    own group there, with a weight decay of 0.

    Args:
        params: parameters, or groups as torch's optimizers take them; float32 or float64.
        lr: learning rate, a number or a 0-dim tensor (on the device, for a captured graph).
        momentum: μ, 0 to 1.
        weight_decay: λ of parameters with two dimensions or more: 1e-6 (v1), 1e-4 (v2).
        trust_coefficient: η.
        form: "authors" (learning rate inside the momentum buffer), "popular" (outside it, trust ratio of
            the buffer), or "port" (Bolts, lightly, timm), in which a parameter without decay is not adapted.
        impl: "reference", "fused" (Triton, CUDA only), "apex" (NVIDIA apex), or "auto": fused where it can
            run, else reference.  State moves freely between them.
        exclude_vectors: False: parameters with fewer than two dimensions are treated like all others.

    Raises:
        ValueError: for a setting out of range, an `impl` that can't run here, or half-precision parameters.

    A supervised head (its kernel with ordinary L2 and no adaptation, its bias with neither):

    >>> head = torch.nn.Linear(8, 2)
    >>> encoder = torch.nn.Linear(8, 8, bias=False)
    >>> optimizer = LARS([{"params": encoder.parameters()},
    ...                   {"params": [head.weight], "adapt": False, "weight_decay": 1e-4},
    ...                   {"params": [head.bias]}], lr=4.8, weight_decay=1e-6)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        form: str = "authors",
        impl: str = "auto",
        exclude_vectors: bool = True,
    ) -> None:
        if impl not in IMPLS:
            raise ValueError(f"LARS impl {impl!r} is unknown; there are {', '.join(IMPLS)}")
        self.impl = impl
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "form": form,
            "weight_decay": weight_decay,
            # settings of parameters with fewer than two dimensions
            "vector_weight_decay": 0.0 if exclude_vectors else weight_decay,
            "adapt": True,
            "vector_adapt": not exclude_vectors,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "impl": self.impl}  # torch's own drops it from copies

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its own settings also apply to its parameters with fewer than two dimensions."""
        for name in ("weight_decay", "adapt"):
            if name in param_group:
                param_group.setdefault(f"vector_{name}", param_group[name])
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over momentum and settings.  ValueError: the state is of another form, with other buffers."""
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if "form" not in theirs:
                raise ValueError(
                    "this optimizer state is not of LARS; start without it, or use its optimizer"
                )
            if ours["form"] != theirs["form"]:
                raise ValueError(
                    f"the LARS state has form {theirs['form']!r} and this optimizer {ours['form']!r}, whose"
                    f" momentum differs; set form={theirs['form']!r} to continue"
                )
        super().load_state_dict(state_dict)

    def check(self) -> None:
        """Raise ValueError now, not in the first step, if `impl` can't run on these parameters."""
        for number, group in enumerate(self.param_groups):
            self._step_function(number, group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's value, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            is_vector = [p.ndim < 2 for p in params]
            weight_decay = [group["vector_weight_decay" if v else "weight_decay"] for v in is_vector]
            adapt = [group["vector_adapt" if v else "adapt"] for v in is_vector]
            if group["form"] == "port":
                adapt = [wanted and decay != 0 for wanted, decay in zip(adapt, weight_decay, strict=True)]
            self._step_function(number, params)(
                params,
                [p.grad for p in params],
                [self.state[p]["momentum_buffer"] for p in params],
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=weight_decay,
                trust_coefficient=group["trust_coefficient"],
                adapt=adapt,
                form=group["form"],
            )
        return loss

    def _step_function(self, number: int, params: list[Tensor]) -> Callable[..., None]:
        """Return the step that `impl` names, for these parameters of group `number`."""
        if self.impl == "apex":
            from fastclr.optim.lars.apex import apex_step, find_l2norm

            find_l2norm()  # says what is missing
            return apex_step
        if self.impl == "fused" or (self.impl == "auto" and params[0].is_cuda):
            reason = _why_not_fused(params)
            if reason is None:
                from fastclr.optim.lars.fused import FusedStep

                # made when first needed: copies and unpickled optimizers begin without
                steps: dict[int, FusedStep] = self.__dict__.setdefault("_fused_steps", {})
                return steps.setdefault(number, FusedStep())
            if self.impl == "fused":
                raise ValueError(f"LARS impl='fused' can't run here: {reason}; use impl='auto'")
        return reference_step


def _why_not_fused(params: list[Tensor]) -> str | None:
    for p in params:
        if not p.is_cuda or p.dtype != torch.float32:
            return f"the parameters are {p.dtype} on {p.device}, and it needs float32 on a CUDA device"
    return why_no_triton()


def _check_group(group: dict[str, Any]) -> None:
    def check(good: bool, name: str, what: str) -> None:
        if not good:
            raise ValueError(f"LARS {name} is {group[name]!r}; it must be {what}")

    lr = group["lr"]
    # the value of a tensor is not checked: it may be on a device, and may change under a captured graph
    check(lr.ndim == 0 if isinstance(lr, Tensor) else lr >= 0, "lr", "0 or more, or a 0-dim tensor")
    check(0 <= group["momentum"] < 1, "momentum", "at least 0 and less than 1")
    check(group["trust_coefficient"] > 0, "trust_coefficient", "positive")
    check(group["form"] in FORMS, "form", f"one of {', '.join(FORMS)}")
    for name in ("weight_decay", "vector_weight_decay"):
        check(group[name] >= 0, name, "0 or more")
    for p in group["params"]:
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"LARS got a {p.dtype} parameter; its steps are too small for that precision:"
                " keep float32 weights and use autocast"
            )
