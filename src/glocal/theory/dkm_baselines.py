"""Baselines of the deep kernel machine from scikit-learn: ARD Gaussian process and multilayer perceptron."""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.seeding import derive_seed
from glocal.theory.dkm_data import Split


def ard_predictions(split: Split) -> Float[Tensor, "runs m k"]:
    """Gaussian process with one lengthscale per input, height and noise learned by marginal likelihood; test means.

    One scikit-learn fit per run, on the CPU.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    d = split.x.shape[2]
    means = []
    for x, y, x_test in zip(*_numpy(split.x, split.y, split.x_test), strict=True):
        scales = RBF(np.full(d, np.sqrt(d)), (1e-1, 1e3))
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * scales + WhiteKernel(0.1, (1e-3, 10.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a lengthscale at its bound is how ARD switches an input off
            model = GaussianProcessRegressor(kernel).fit(x, y)
        means.append(model.predict(x_test).reshape(len(x_test), -1))
    return torch.from_numpy(np.stack(means)).to(split.x)


def mlp_predictions(
    split: Split, depth: int, *, width: int = 50, decays: tuple[float, ...] = (1.0, 10.0), seed: int = 0
) -> Float[Tensor, "runs m k"]:
    """ReLU network with `depth` hidden layers, trained by L-BFGS; the weight decay is chosen on the validation part.

    One scikit-learn fit per run and decay, on the CPU.
    """
    from sklearn.neural_network import MLPRegressor

    means = []
    arrays = _numpy(split.x, split.y, split.x_val, split.y_val, split.x_test)
    for x, y, x_val, y_val, x_test in zip(*arrays, strict=True):
        best = (np.inf, np.zeros((len(x_test), y.shape[1])))
        for decay in decays:
            model = MLPRegressor(
                hidden_layer_sizes=(width,) * depth,
                alpha=decay,
                solver="lbfgs",
                max_iter=100,
                random_state=derive_seed(seed, "mlp") % 2**32,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # stopping at max_iter is part of the budget
                model.fit(x, y.squeeze())
            error = float(np.square(model.predict(x_val).reshape(y_val.shape) - y_val).mean())
            if error < best[0]:
                best = (error, model.predict(x_test).reshape(len(x_test), -1))
        means.append(best[1])
    return torch.from_numpy(np.stack(means)).to(split.x)


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]
