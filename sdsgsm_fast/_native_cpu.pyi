from collections.abc import Sequence

_Setting = tuple[int, float]

interface: int

def update(
    adv: int,
    adv_out: int,
    images: int,
    grad: int,
    domain: int,
    momentum: int,
    momentum_out: int,
    active: int,
    eps: _Setting,
    alpha: _Setting,
    background: _Setting,
    batch: int,
    channels: int,
    pixels: int,
    channels_last: bool,
    image_type: int,
    grad_type: int,
    gain: float,
    decay: float,
    lo: float,
    hi: float,
    sign: float,
    normalize: int,
    threads: int,
    /,
) -> None: ...
def occlude(
    images: int,
    out: int,
    fill: int,
    mean: int,
    std: int,
    batch: int,
    channels: int,
    first: int,
    count: int,
    grid: Sequence[int],
    channels_last: bool,
    image_type: int,
    out_type: int,
    threads: int,
    /,
) -> None: ...
def window_mean(scores: int, out: int, batch: int, grid: Sequence[int], type: int, threads: int, /) -> None: ...
def paste(
    clean: int,
    crops: int,
    out: int,
    image: int,
    row: int,
    col: int,
    rows: int,
    cols: int,
    sizes: Sequence[int],
    one_crop: bool,
    pad: float,
    type: int,
    threads: int,
    /,
) -> None: ...
def winograd(
    x: int,
    weight: int,
    bias: int,
    other: int,
    out: int,
    sizes: Sequence[int],
    relu: bool,
    type: int,
    threads: int,
    /,
) -> None: ...
def winograd_pack(
    weight: int, out: int, outputs: int, channels: int, tile: int, type: int, threads: int, /
) -> None: ...
def winograd_in_bfloat16() -> bool: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str, /) -> None: ...
