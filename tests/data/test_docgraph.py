"""The documentation graph: statistics of the briefs, integrity, and that the script rebuilds it."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from glocal.data import DataError, docgraph, load, node_split
from glocal.seeding import torch_generator


def test_statistics_lie_where_the_recipe_puts_them() -> None:
    data = load("docgraph")
    n, edges = data.num_nodes, data.edge_index
    assert 2550 <= n <= 2800
    assert 3950 <= edges.shape[1] // 2 <= 4350
    degrees = edges[0].bincount(minlength=n)
    assert int(degrees.min()) == 1  # isolated nodes were dropped
    assert int(degrees.median()) == 2
    assert 30 <= int(degrees.max()) <= 50
    assert 0.88 <= (degrees <= 6).float().mean() <= 0.93
    assert 0.93 <= (data.y[edges[0]] == data.y[edges[1]]).float().mean() <= 0.96
    assert data.y.unique().tolist() == list(range(12))
    assert len(data.class_names) == 12
    assert int(data.y.bincount().min()) >= 80


def test_the_graph_is_undirected_and_simple() -> None:
    data = load("docgraph")
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert not data.has_isolated_nodes()
    assert data.edge_index.unique(dim=1).shape == data.edge_index.shape
    assert len(set(data.names)) == data.num_nodes == len(data.names)
    assert list(data.names) == sorted(data.names)


def test_features_are_frequent_words_that_do_not_name_the_package() -> None:
    data = load("docgraph")
    assert data.x.shape == (data.num_nodes, 600)
    assert set(data.x.unique().tolist()) == {0.0, 1.0}
    frequency = data.x.sum(0)
    assert int(frequency.min()) >= 10
    assert torch.equal(frequency, frequency.sort(descending=True).values)
    names = {"numpy", "scipy", "sklearn", "scikit", "skimage", "networkx", "torch", "pytorch", "np", "nx", "nn"}
    assert not names & set(data.words)
    assert int(data.x.sum(1).min()) >= 1
    few = load("docgraph", n_words=300)
    assert few.words == data.words[:300]
    assert torch.equal(few.x, data.x[:, :300])


def test_known_entries_are_linked() -> None:
    data = load("docgraph")
    index = {name: k for k, name in enumerate(data.names)}
    pairs = set(map(tuple, data.edge_index.T.tolist()))
    for a, b in (
        ("sklearn.linear_model.Lasso", "sklearn.linear_model.LassoCV"),
        ("numpy.argmax", "numpy.argmin"),
        ("scipy.optimize.brentq", "scipy.optimize.ridder"),
    ):
        assert (index[a], index[b]) in pairs
    assert data.class_names[data.y[index["numpy.argmax"]]] == "numpy"
    assert data.class_names[data.y[index["scipy.ndimage.label"]]] == "skimage+ndimage"


def test_neighbours_help_classification() -> None:
    """Ridge regression on features averaged over two hops beats the same on raw features, on every split."""
    data = load("docgraph")
    n = data.num_nodes
    a = torch.sparse_coo_tensor(data.edge_index, torch.ones(data.edge_index.shape[1]), (n, n), check_invariants=True)
    a = a.to_dense() + torch.eye(n)
    a = a / a.sum(1, keepdim=True)
    x = torch.nn.functional.normalize(data.x, dim=1)
    smooth = a @ (a @ x)
    target = torch.nn.functional.one_hot(data.y).float()
    for seed in range(3):
        train, _, test = node_split(data.y, 10, 500, generator=torch_generator(seed))
        scores = []
        for features in (x, smooth):
            gram = features[train] @ features[train].T + 0.05 * torch.eye(int(train.sum()))
            weights = features[train].T @ torch.linalg.solve(gram, target[train])
            scores.append(float(((features[test] @ weights).argmax(1) == data.y[test]).float().mean()))
        assert scores[1] > scores[0] + 0.02
        assert 0.65 < scores[0] < 0.9


def test_a_damaged_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glocal.data import files

    path = tmp_path / "docgraph.npz"
    path.write_bytes(files.locate(docgraph.FILE).read_bytes()[:-20])
    monkeypatch.setattr(files, "locate", lambda file: path)
    with pytest.raises(DataError, match=r"corrupt or truncated.*git checkout -- src/glocal/data/docgraph.npz"):
        load("docgraph")
    with pytest.raises(ValueError, match="n_words must be between 1 and 600, got 0"):
        load("docgraph", n_words=0)


def test_the_fake_has_the_same_sizes() -> None:
    real, fake = load("docgraph"), load("docgraph", fake=True)
    assert fake.x.shape == real.x.shape
    assert fake.edge_index.shape == real.edge_index.shape
    assert len(fake.class_names) == len(real.class_names)
    assert fake.is_undirected()
    assert not fake.has_self_loops()


@pytest.mark.slow
def test_the_script_rebuilds_the_stored_arrays() -> None:
    data = load("docgraph")
    installed = [metadata.version(line.split()[0]).split("+")[0] for line in data.versions]
    stored = [line.split()[1] for line in data.versions]
    if installed != stored:
        pytest.skip(f"other versions are installed ({installed}) than the data were built with ({stored})")
    script = Path(__file__).parents[2] / "scripts" / "build_docgraph.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "identical", done.stderr


def test_stored_arrays_hold_no_text_of_documentation() -> None:
    from glocal.data import files

    with np.load(files.locate(docgraph.FILE)) as stored:
        assert set(stored) == {"x_bits", "edges", "y", "names", "words", "classes", "versions"}
        assert b" " not in stored["names"].tobytes()
