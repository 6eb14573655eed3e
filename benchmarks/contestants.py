"""Who takes part: the libraries, the environments of their processes, and the models that they start from."""

import math
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Makes glibc keep freed memory, and ask for huge pages, in PyTorch's process, as `keep_freed_memory` and NumPy do in
# minigrad's. Without it PyTorch asks the system for most of its memory afresh at every step.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
CONTESTANTS: dict[str, tuple[str, dict[str, str]]] = {  # name: the library, and its process's environment
    **dict.fromkeys(["minigrad", "minigrad, 1 process", "minigrad, checkpointed"], ("minigrad", {})),
    "reference": ("minigrad", {"MINIGRAD_KERNELS": "reference"}),
    **dict.fromkeys(["PyTorch", "PyTorch loop", "PyTorch eager", "torch.compile"], ("torch", {})),
    "PyTorch tuned": ("torch", TUNED),
    "transformers": ("transformers", {}),
}


class Model(NamedTuple):
    """The shape of a GPT; the names are those of GPTConfig and of TorchGPT."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool = False
    dropout: float = 0.0


SMALL = Model(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)
BABY = Model(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65)
GPT2 = Model(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257, bias=True)
TINY = Model(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=65)  # to try the benchmarks themselves


class Contestant:
    """What runs in a contestant's process."""

    def __init__(self, library: str) -> None:
        self.library = library

    def prepare(self, threads: int | None) -> str:
        """Import the library and set its number of threads, unless that is None. Its name, version and threads."""
        if self.library == "minigrad":
            return prepare_minigrad(threads)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        about = f"PyTorch {torch.__version__} on {torch.get_num_threads()} thread(s)"
        if self.library == "transformers":
            import transformers

            transformers.logging.set_verbosity_error()
            about = f"transformers {transformers.__version__} on {about}"
        return about


def prepare_minigrad(threads: int | None) -> str:
    import minigrad as mg
    from minigrad.kernels.cpu import blas
    from minigrad.memory import keep_freed_memory

    keep_freed_memory()  # as the Trainer does
    if threads is not None:
        mg.set_num_threads(threads)
        if os.environ.get("MINIGRAD_KERNELS") == "reference":  # then NumPy's threads work, and not the engine's
            from threadpoolctl import threadpool_limits

            threadpool_limits(threads, user_api="blas")
    with_numpy = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload,index]
    products = blas.library() if blas.library() != "numpy" else f"{with_numpy['name']} {with_numpy['version']}"
    return f"minigrad {mg.__version__} on {mg.get_num_threads()} thread(s), NumPy {np.__version__}, {products}"


def memory(field: str = "VmHWM") -> float:
    """Resident memory of this process and its workers in MB: its peak so far, or with "VmRSS" the current figure.

    Linux keeps VmHWM for the program itself; getrusage's figure starts from that of the process that started it. Of
    several processes it counts what they have in common once: their sum, less what the current sum has twice.
    """
    if not Path("/proc/self").exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    total, processes = 0, ["self", *(child.pid for child in multiprocessing.active_children())]
    for process in processes:
        figures = [Path(f"/proc/{process}/{file}").read_text() for file in ("status", "smaps_rollup")]
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in "".join(figures).splitlines() if "kB" in line}
        total += kilobytes[field] - (kilobytes["VmRSS"] - kilobytes["Pss"] if len(processes) > 1 else 0)
    return total * 1024 / 1e6


# Models with the same weights in every process


def initial_weight(name: str, shape: Sequence[int], n_layer: int) -> np.ndarray:
    """GPT-2's initial weights for the parameter of this name, the same in every process."""
    if len(shape) < 2:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def minigrad_model(shape: Model, **options: Any) -> Any:
    import minigrad as mg
    from gpt import GPT, GPTConfig

    model = GPT(GPTConfig(**shape._asdict(), **options))
    with mg.no_grad():
        for name, parameter in model.named_parameters():
            parameter[...] = initial_weight(name, parameter.shape, shape.n_layer)
    return model


def torch_model(shape: Model) -> Any:
    import torch

    from benchmarks.torch_gpt import TorchGPT

    model = TorchGPT(**shape._asdict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(initial_weight(name, parameter.shape, shape.n_layer)))
    return model


def transformers_model(shape: Model) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd, "n_positions": shape.block_size}
    config = GPT2Config(**sizes, vocab_size=shape.vocab_size, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            in_block = name.startswith("h.") and parameter.ndim == 2  # stored (in, out), ours (out, in)
            weight = initial_weight(name, parameter.shape[::-1] if in_block else parameter.shape, shape.n_layer)
            parameter.copy_(torch.from_numpy(weight.T if in_block else weight))
    return model.eval()


MODELS = {"minigrad": minigrad_model, "torch": torch_model, "transformers": transformers_model}


def train_step(optimizer: Any, loss_of: Callable[[], Any], clip: Callable[[], Any]) -> Any:
    """What a training loop repeats, in either library; its loss."""
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    clip()
    optimizer.step()
    return loss
