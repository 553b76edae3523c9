"""GPUs by their data sheets: memory, rate of matrix products, bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from sga.errors import UserError

UTILISATION = (0.20, 0.25)
"""Share of a data sheet's matrix rate that training steps reach. Measured on an NVIDIA H200 on 26 November 2026 (commit
6e2e690, bf16-mixed, packed rows, TOFU forget10 at K = 4): a Llama of 1.3 B parameters 0.25 and one of 6.7 B with
gradient checkpointing 0.31 of what a large matrix product reached there, 785 TFLOP/s, 0.79 of the sheet's 989."""


@dataclass(frozen=True)
class GPU:
    """One model of GPU with its data sheet's numbers.

    Attributes:
        name: Name for the option `--gpu`.
        memory: Memory in bytes, with 1e9 bytes per GB; the driver may show a few percent more.
        half: Rate of dense bfloat16 or float16 matrix products summed in float32 (operations per second).
        single: Rate of float32 matrix products without TF32, PyTorch's default (operations per second).
        bandwidth: Bandwidth of the memory in bytes per second.
        devices: Names that the driver reports, without NVIDIA, Tesla or GeForce in front.
        bfloat16: True if it computes in bfloat16; otherwise such products run as float32.
    """

    name: str
    memory: float
    half: float
    single: float
    bandwidth: float
    devices: tuple[str, ...]
    bfloat16: bool = True

    def matrix_rate(self, precision: str) -> float:
        """Rate of matrix products in a precision by Lightning's name (operations per second).

        Raises:
            UserError: the precision is float64, for which the table has no rates.
        """
        if precision.startswith("64"):
            raise UserError(f"--gpu {self.name} has no rate for --trainer.precision {precision}; give --flops RATE")
        fast = precision.startswith("16") or (precision.startswith("bf16") and self.bfloat16)
        return self.half if fast else self.single


def _gpu(
    name: str, gigabytes: float, half: float, single: float, gigabytes_a_second: float, *devices: str, bf16: bool = True
) -> GPU:
    return GPU(name, gigabytes * 1e9, half * 1e12, single * 1e12, gigabytes_a_second * 1e9, devices, bf16)


# GB, TFLOP/s of half and of single precision, GB/s; dense: half of what a sheet states with sparsity. Only what could
# be looked up is here, on 27 November 2026, in these copies of NVIDIA's data sheets and tables made of them:
#   hopper: https://glennklockwood.com/garden/processors/h100, H100 SXM, whose processor H200 has too
#   memory: https://inferenceengineering.tech/cheat-sheets/hardware, H100 SXM, H200 and L4
#   a100: https://glennklockwood.com/garden/processors/A100, after the data sheet
#   a100-pcie: https://www.thundercompute.com/blog/nvidia-a100-specs-full-guide, 1935 GB/s for the card, 2039 for SXM
#   l40s: https://www.mullet.se/product.html?product_id=355414
#   l4: https://unanswered.io/guide/nvidia-l4-vs-t4-gpu
#   a40: https://www.ecer.com/corp/details-uuuedqa-p1bsay9-multi-display-setups-supported-by-48gb-gddr6-ecc-
#     memory-nvidia-a40-gpu-and-vga-outputs.html
#   rtx4090: https://waredb.com/processor/nvidia-geforce-rtx-4090, sums in float32
#   v100: https://ozyphus.github.io/gpu-maths.html, of 32 GB
#   t4: https://www.rightnowai.co/guides/gpu-comparison/t4
GPUS = (
    _gpu("h200", 141, 989, 67, 4800, "H200"),  # hopper, memory
    _gpu("h100", 80, 989, 67, 3350, "H100 80GB HBM3"),  # hopper, memory
    _gpu("a100-80", 80, 312, 19.5, 1935, "A100-SXM4-80GB", "A100 80GB PCIe"),  # a100, a100-pcie
    _gpu("a100-40", 40, 312, 19.5, 1555, "A100-SXM4-40GB", "A100-PCIE-40GB"),  # a100, a100-pcie
    _gpu("l40s", 48, 362, 91.6, 864, "L40S"),  # l40s
    _gpu("l4", 24, 121, 30.3, 300, "L4"),  # l4, memory
    _gpu("a40", 48, 149.7, 37.4, 696, "A40"),  # a40
    _gpu("rtx4090", 24, 165.2, 82.6, 1008, "RTX 4090"),  # rtx4090, sums in float32
    _gpu("v100-32", 32, 125, 15.7, 900, "V100-SXM2-32GB", bf16=False),  # v100
    _gpu("v100-16", 16, 125, 15.7, 900, "V100-SXM2-16GB", bf16=False),  # v100, with half of the memory
    _gpu("t4", 16, 65, 8.1, 320, "T4", bf16=False),  # t4
)


def known_gpu(name: str) -> GPU | None:
    """GPU by a name for `--gpu` or the driver's name, case-insensitively; None if unknown.

    >>> known_gpu("NVIDIA GeForce RTX 4090").name, known_gpu("NVIDIA GeForce RTX 4090 Laptop GPU")
    ('rtx4090', None)
    """
    words = name.lower().split()
    while words and words[0] in ("nvidia", "tesla", "geforce"):
        del words[0]
    plain = " ".join(words)
    return next((gpu for gpu in GPUS if plain in (gpu.name, *map(str.lower, gpu.devices))), None)


def named_gpu(name: str) -> GPU:
    """GPU by a name for `--gpu`.

    Raises:
        UserError: the name is not in the table.
    """
    found = known_gpu(name)
    if found is None:
        raise UserError(
            f"--gpu {name} is not known; known are {', '.join(gpu.name for gpu in GPUS)} "
            "(for another give --flops RATE and --memory GIB)"
        )
    return found
