"""The processes that share one cell: rank, mean and agreement; a single process is the case of one.

Gradients are averaged here and not by DistributedDataParallel: that regroups parameters after its first step, so with
three workers and more a run that goes on from a checkpoint would add in another order and end with other last bits.
"""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists: its functions keep the default one as argument, with live threads
from torch import Tensor, nn

from batchfree.errors import StudyError
from batchfree.study._ghost_batch_norm import GhostBatchNorm2d

__all__ = ["Workers"]


class Workers:
    """This process among `count` that share each SGD batch; every method is called by all of them together.

    Several workers are the processes of one `torchrun`, which tells each its rank; numbers travel with gloo, and what
    lies on CUDA devices with NCCL, a device for each worker.

    Args:
        device: where the cell trains.

    Raises:
        StudyError: torchrun did not start this process, or started another number; or there is no device for it.
    """

    def __init__(self, count: int, device: str = "cpu") -> None:
        self.count = count
        self.rank = 0
        if count > 1:
            _check_torchrun(count)
            _take_device(device)
            _end_with_the_agent()
            dist.init_process_group("cpu:gloo,cuda:nccl" if _is_cuda(device) else "gloo")
            self.rank = dist.get_rank()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.count > 1:
            if error is None:
                self.wait()  # torchrun ends all of them when one leaves: not before the files are whole
            dist.destroy_process_group()

    def share(self, chosen: Tensor) -> Tensor:
        """This worker's part of the images of one step."""
        per_worker = len(chosen) // self.count
        return chosen[self.rank * per_worker : (self.rank + 1) * per_worker]

    def share_statistics(self, network: nn.Module) -> None:
        """From now on each Batch Norm of `network` keeps the running statistics of all workers' images."""
        for module in network.modules():
            if isinstance(module, GhostBatchNorm2d):
                module.workers = self.count

    def average_gradients(self, network: nn.Module) -> None:
        """Each gradient becomes the mean of every worker's, to the same bits in all of them."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of every worker's `value`."""
        return value if self.count == 1 else self._reduced(value, dist.ReduceOp.SUM) / self.count

    def any(self, fact: bool) -> bool:
        """Whether `fact` holds for some worker."""
        return fact if self.count == 1 else self._reduced(float(fact), dist.ReduceOp.MAX) > 0

    def wait(self) -> None:
        """Until all workers are here."""
        self.any(False)

    @staticmethod
    def _reduced(value: float, operation: dist.ReduceOp.RedOpType) -> float:
        reduced = torch.tensor(value, dtype=torch.float64)  # on the CPU: no accelerator is kept waiting
        dist.all_reduce(reduced, operation)
        return reduced.item()


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _check_torchrun(count: int) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if not missing and int(os.environ["WORLD_SIZE"]) == count:
        return
    found = "this process is not one of torchrun's" if missing else f"torchrun started {os.environ['WORLD_SIZE']}"
    raise StudyError(
        f"workers={count} was given, and {found}. As many processes as workers share a cell. "
        f"Run: torchrun --standalone --nproc-per-node={count} --module batchfree cell workers={count} ..."
    )


def _take_device(device: str) -> None:
    """Makes `cuda` mean this worker's own device."""
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return
    if wanted != torch.device("cuda"):
        raise StudyError(
            f"device={device} was given to several workers. They run on cpu, or each on a device of its own with "
            f"cuda. Pass device=cuda."
        )
    local_rank, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= found:
        raise StudyError(
            f"worker {local_rank + 1} of this machine has no CUDA device: {found} are there. Each worker needs one of "
            f"its own. Pass at most as many workers as devices, or device=cpu."
        )
    torch.cuda.set_device(local_rank)


def _end_with_the_agent() -> None:
    """Where the system can: a killed torchrun, whose workers have sessions of their own, leaves none of them behind."""
    if sys.platform.startswith("linux"):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
