"""LARS (You et al. 2017, arXiv 1708.03888): one optimizer class, interchangeable steps.

optimizer.py   the torch Optimizer: groups, state, which step runs
reference.py   the step in plain torch, foreach operations
fused.py       the step as two Triton launches
apex.py        the step on NVIDIA apex's multi-tensor norms
"""

from fastclr.optim.lars.optimizer import LARS
from fastclr.optim.lars.reference import reference_step

__all__ = ["LARS", "reference_step"]
