def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def compiler() -> str: ...
def threading_runtime() -> str: ...

class Problem:
    def __init__(
        self,
        samples: int,
        channels: int,
        spatial: int,
        groups: int,
        channels_last: bool,
        element: int,
        parameter_element: int,
        activation: int,
        unbiased: bool,
        eps: float,
        threads: int,
        instruction_set: str = "",
    ) -> None: ...

class Doubles:
    def __init__(self, count: int) -> None: ...
    @property
    def address(self) -> int: ...

def forward(
    problem: Problem,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    moments: int,
    /,
) -> None: ...
def moments(
    problem: Problem,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    moments: int,
    /,
) -> None: ...
def apply(
    problem: Problem,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    moments: int,
    /,
) -> None: ...
def backward(
    problem: Problem,
    dy: int,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    moments: int,
    dx: int,
    dresidual: int,
    dweight: int,
    dbias: int,
    /,
) -> None: ...
