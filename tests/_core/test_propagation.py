"""Labels spread over a graph as in a slow calculation with whole matrices."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from sklabel._core.few_shot import left_out_probe, linear_probes
from sklabel._core.propagation import LabeledRows, neighbor_graph, propagate, spread

RNG = np.random.default_rng(0)


def unit(n=60, d=6):
    Z = RNG.normal(size=(n, d))
    return (Z / np.linalg.norm(Z, axis=1, keepdims=True)).astype(np.float32)


def test_the_graph_is_that_of_all_pairs():
    Z, k = unit(), 4
    graph = neighbor_graph(Z, k)
    D = 1 - Z.astype(float) @ Z.T.astype(float)
    np.fill_diagonal(D, np.inf)
    near = np.argsort(D, axis=1)[:, :k]
    s = np.take_along_axis(D, near, 1)[:, -1]
    W = np.zeros_like(D)
    for i in range(len(Z)):
        W[i, near[i]] = np.exp(-2 * D[i, near[i]] / np.sqrt(s[i] * s[near[i]]))
    W = (W + W.T) / 2
    degrees = W.sum(1)
    expected = W / np.sqrt(degrees[:, None] * degrees)
    np.testing.assert_allclose(graph.links.toarray(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(graph.near, np.column_stack([range(60), near]))
    np.testing.assert_allclose(graph.scales, s, rtol=1e-4)


def test_walks_are_the_solution_of_the_equations():
    links = neighbor_graph(unit(), 5).links
    Y = csr_array(np.eye(60)[:, :7])
    exact = 0.3 * np.linalg.solve(np.eye(60) - 0.7 * links.toarray(), Y.toarray())
    np.testing.assert_allclose(propagate(links, Y, 0.7), exact, atol=1e-6)
    rows = np.array([5, 2, 33])
    np.testing.assert_array_equal(
        propagate(links, Y, 0.7, rows), propagate(links, Y, 0.7)[rows]
    )


def test_what_no_walk_reaches_is_alike_for_all_classes():
    weights, values = torch.ones(2, 3), torch.zeros(2, 3, 4)
    values[0, 1, 2] = 1e-30
    found = spread(weights, values).exp()
    assert found[0].argmax() == 2 and found[0, 2] == pytest.approx(1, abs=1e-3)
    assert (found[1] == found[1, 0]).all()


@pytest.mark.parametrize("n_labeled", [20, 55])
def test_rows_left_out_are_those_of_a_graph_without_their_labels(n_labeled):
    Z = unit(200)
    graph = neighbor_graph(Z, 6)
    codes, weights = RNG.integers(0, 3, n_labeled), RNG.uniform(0.5, 2, n_labeled)
    rows = RNG.permutation(200)[:n_labeled]
    given = LabeledRows(rows, codes, weights, 3, seed=0)
    assert given.n_folds == (20 if n_labeled == 20 else 10)
    _, log_shares = given.propagate(graph, 0.9)
    for place, i in enumerate(given.left_out):
        kept = given.fold != given.fold[i]
        less = LabeledRows(rows[kept], codes[kept], weights[kept], 3, seed=0)
        values, _ = less.propagate(graph, 0.9)
        own = rows[[i]]
        expected = spread(graph.weights[own], values[graph.near[own]])
        torch.testing.assert_close(
            log_shares[[place]].float(), expected, atol=2e-3, rtol=2e-3
        )


def test_of_many_labels_some_are_left_out():
    codes = np.arange(2000) % 7
    given = LabeledRows(np.arange(2000), codes, np.ones(2000), 7, seed=0)
    assert len(given.left_out) == 500 and given.useful.all()
    sizes = np.bincount(given.fold[given.left_out])
    assert sizes.tolist() == [50] * 10
    weights = given.training_weights()
    assert weights.sum(1).tolist() == [1950] * 10 + [2000]
    np.testing.assert_array_equal(
        given.masses(), [np.bincount(codes, w, 7) for w in weights]
    )


def test_probes_of_folds_are_probes_of_the_other_rows():
    Z, codes = unit(30), RNG.integers(0, 3, 30)
    given = LabeledRows(np.arange(30), codes, np.ones(30), 3, seed=0)
    coef, bias, log_p = left_out_probe(Z, given, 10.0)
    for i in (0, 7, 29):
        kept = np.arange(30) != i
        own, own_bias = linear_probes(Z[kept], codes[kept], np.ones((1, 29)), 3, 10.0)
        logits = own[0] @ Z[i] + own_bias[0]
        expected = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(log_p[i], expected, atol=1e-3)
    alone, alone_bias = linear_probes(Z, codes, np.ones((1, 30)), 3, 10.0)
    np.testing.assert_allclose(coef, alone[0], atol=1e-3)
    np.testing.assert_allclose(bias, alone_bias[0], atol=1e-3)
