from torch import Tensor

TORCH_BUILD: str

def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    activation: int,
    /,
) -> Tensor: ...
def standardize_weight(weight: Tensor, is_unbiased: bool, eps: float, /) -> Tensor: ...
