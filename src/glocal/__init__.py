"""glocal: sixty-six machine-learning papers, each re-implemented, checked on a laptop and runnable on a GPU."""

__version__ = "0.1.0"
