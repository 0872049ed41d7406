"""Which tiles the branches' convolutions are cut into, and whether that is worth it: arithmetic, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Axis:
    """An axis of `length` cut into `count` tiles for a kernel of side k.

    Where one tile holds all, what lies outside is zero on both sides, so either side's margin may wrap onto the
    other's, and the tile reads the axis without margins.
    """

    length: int
    kernel: int
    count: int

    @property
    def write(self) -> int:
        """L, the outputs of a tile."""
        return -(-self.length // self.count)

    @property
    def period(self) -> int:
        """P, the points of its transform."""
        return self.write + (self.kernel // 2 if self.count == 1 else self.kernel - 1)

    @property
    def read(self) -> int:
        """S, the inputs of a tile."""
        return self.length if self.count == 1 else self.period

    @property
    def start(self) -> int:
        """The first input of a tile, relative to its first output."""
        return 0 if self.count == 1 else -(self.kernel // 2)


@dataclass(frozen=True)
class Tile:
    """The tiles of one kernel: along H and along W."""

    rows: Axis
    columns: Axis

    @property
    def products(self) -> int:
        """R: real products per tile and pair of channels; see `spectral`."""
        p, q = self.rows.period, self.columns.period
        real = (2 - p % 2) * (2 - q % 2)
        return real + 3 * (p * q - real) // 2

    @property
    def count(self) -> int:
        """Tiles per image."""
        return self.rows.count * self.columns.count


@dataclass(frozen=True)
class Plan:
    """For each kernel its tiles, or None where it is convolved directly."""

    kernels: tuple[int, ...]
    tiles: tuple[Tile | None, ...]

    def weights(self, in_channels: int, out_channels: int) -> int:
        """How many numbers the weights' coefficients are, all branches together."""
        return sum(t.products * in_channels * out_channels for t in self.tiles if t is not None)


# Milliseconds of one thread per unit of work, fitted to benchmarks/spectral.py (docs/log.md), and the least gain in
# the model at which a kernel is not convolved directly: the model is right to about a third.
DIRECT = 1 / 45e6  # a multiply-add of a direct convolution
PRODUCT = 1 / 30e6  # a multiply-add of the batched product
READ = 0.6e-6  # a coefficient of the weights, read
COEFFICIENT, PER_POINT = 1.2e-6, 0.09e-6  # a coefficient of x or of the outputs: itself, and for each of P points
TAP = 2.5e-6  # a coefficient of the weights, made or undone
VALUE = 2e-6  # a value of x or of the outputs, brought into order
CALL = 1.0  # a branch
LEAST_GAIN = 1.2
WIDEST = 32  # the largest period


@dataclass(frozen=True)
class Work:
    """The convolutions of one x: (N, I, H, W) to O channels."""

    images: int
    inputs: int
    outputs: int
    height: int
    width: int
    training: bool

    def direct(self, kernel: int) -> float:
        """Milliseconds of the direct convolution; taps that meet only padding cost nothing."""
        taps = [sum(min(n, i + kernel // 2 + 1) - max(0, i - kernel // 2) for i in range(n)) for n in self.sides]
        return (3 if self.training else 1) * DIRECT * self.images * self.inputs * self.outputs * taps[0] * taps[1]

    @property
    def sides(self) -> tuple[int, int]:
        """H and W."""
        return self.height, self.width

    def spectral(self, tile: Tile) -> float:
        """Milliseconds of the products and the transforms around them."""
        tiles, channels = self.images * tile.count, self.inputs + self.outputs
        weights = tile.products * self.inputs * self.outputs
        product = weights * (tiles * PRODUCT + READ)
        points = max(tile.rows.period, tile.columns.period)
        coefficients = tile.products * tiles * channels * (COEFFICIENT + PER_POINT * points)
        values = self.images * channels * self.height * self.width * VALUE
        if not self.training:
            return CALL + product + coefficients + values
        return CALL * 3 + 3 * product + 5 * (coefficients + values) + 3 * weights * TAP

    def tiles(self, kernel: int) -> list[Tile]:
        """The tiles to choose among, fastest first, as far as they gain enough."""
        result = set()
        for side in range(2, WIDEST + 1):
            rows, columns = (Axis(n, kernel, -(-n // side)) for n in self.sides)
            if max(rows.period, columns.period) <= WIDEST:
                result.add(Tile(rows, columns))
        enough = self.direct(kernel) / LEAST_GAIN
        return sorted((t for t in result if self.spectral(t) < enough), key=lambda t: (self.spectral(t), t.products))


@lru_cache(maxsize=256)
def worthwhile(
    shape: tuple[int, int, int, int],
    out_channels: int,
    kernels: tuple[int, ...],
    *,
    training: bool,
    groups: int = 1,
    itemsize: int = 4,
    limit: float = 512,
) -> Plan | None:
    """The plan for dense convolutions of an x of this shape on the CPU; None if all are better direct.

    Args:
        shape: (N, I, H, W).
        out_channels: O of each kernel.
        kernels: their sides; odd.
        training: the weights' coefficients are made in each step, and there is a backward.
        groups: None comes back for any but 1.
        itemsize: bytes of a number.
        limit: MiB that the weights' coefficients may take; in training, what is held for a moment.
    """
    work = Work(shape[0], shape[1], out_channels, *shape[2:], training)
    if groups != 1 or min(*shape, out_channels) < 1:
        return None
    choices = [work.tiles(k) if k > 1 and k % 2 else [] for k in kernels]
    while True:
        plan = Plan(kernels, tuple(c[0] if c else None for c in choices))
        sizes = [t.products if t is not None else 0 for t in plan.tiles]
        if plan.weights(work.inputs, work.outputs) * itemsize <= limit * 2**20:
            return plan if any(sizes) else None
        most = sizes.index(max(sizes))  # the next best of this kernel that needs less, or direct
        choices[most] = [t for t in choices[most] if t.products < sizes[most]]
