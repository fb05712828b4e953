"""How fast a processor is, so that the time budget of a chapter means the same everywhere.

The budget is meant for a core of a current laptop. Slower cores get more time, in proportion to what they need for a
fixed piece of work; faster ones do not get less.
"""

import time

import torch

SIDE, N_PRODUCTS, N_SMALL, N_LOOPS = 1500, 3, 6000, 1_500_000


def reference_work() -> float:
    """CPU seconds that a fixed piece of work takes here, on one thread: plain Python, small tensors, matrix products.

    The three parts take about equally long. Other programs that run at the same time count, as they do for a chapter.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square, small = torch.ones(SIDE, SIDE), torch.ones(1000, 64)
        start = time.process_time()
        total = 0
        for number in range(N_LOOPS):
            total += number * number % 7
        for _ in range(N_SMALL):
            small.relu().add(1).mul(0.5)
        for _ in range(N_PRODUCTS):
            square @ square
        return time.process_time() - start
    finally:
        torch.set_num_threads(threads)


def slowness(reference_seconds: float, standard: float) -> float:
    """Factor by which a core is slower than the standard one; 1 for faster ones.

    Args:
        reference_seconds: its time for `reference_work`.
        standard: that of the standard core, in seconds.

    Raises:
        ValueError: for times that are not positive.
    """
    if reference_seconds <= 0 or standard <= 0:
        raise ValueError(f"times must be positive, got {reference_seconds} s and {standard} s")
    return max(1.0, reference_seconds / standard)
