"""Few-shot classifiers of embeddings: a linear probe, a memory of rows."""

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import nn
from torch.nn.functional import cross_entropy

from ..losses import unit_rows

_C_GRID = 10.0 ** np.arange(-2, 5)
_ALPHA_GRID = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
_BETA_GRID = np.array([1.0, 2.0, 5.5, 10.0, 20.0])


class FewShotHead(nn.Module):
    """Probabilities from embeddings: a linear layer, and labeled rows as a memory.

    Parameters
    ----------
    weight : array-like of shape (K, D)
    bias : array-like of shape (K,) or None
        None: 0.
    keys : array-like of shape (m, D) or None
        Embeddings of the labeled rows, of length 1; None: no memory.
    values : array-like of shape (m, K) or None
        Their classes, one-hot, times their weights.
    alpha, beta : float
        See `remembered`.
    """

    def __init__(self, weight, bias=None, keys=None, values=None, alpha=0.0, beta=1.0):
        super().__init__()
        n_classes, n_features = weight.shape
        if keys is None:
            keys, values = np.zeros((0, n_features)), np.zeros((0, n_classes))
        self.linear = nn.Linear(n_features, n_classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.as_tensor(weight))
            self.linear.bias.copy_(torch.zeros(()) if bias is None else _tensor(bias))
        self.register_buffer("keys", _tensor(keys))
        self.register_buffer("values", _tensor(values))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def forward(self, z):
        # logits reach 100: bfloat16 would round them to halves
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            logits = self.linear(z)  # (B, K)
            if len(self.keys):
                logits = logits + remembered(
                    z, self.keys, self.values, self.alpha, self.beta
                )
            return logits.softmax(1)


def _tensor(values):
    return torch.as_tensor(values, dtype=torch.float32)


def class_embedding(texts):
    """Return one direction for each class from the embeddings of its prompts.

    Parameters
    ----------
    texts : sequence of K Tensor of shape (n_prompts, D)
        Of any length; each row is normalized first, and their mean again.

    Returns
    -------
    embedding : Tensor of shape (K, D)
    """
    return torch.stack([unit_rows(unit_rows(own).mean(0)) for own in texts])


def remembered(images, keys, values, alpha, beta):
    r"""Return logits from labeled rows: the memory of Tip-Adapter.

    .. math:: \alpha \exp(-\beta (1 - u F^T)) L

    Parameters
    ----------
    images : Tensor of shape (n, D)
        u, rows of length 1.
    keys : Tensor of shape (m, D)
        F, embeddings of the labeled rows, of length 1.
    values : Tensor of shape (m, K)
        L, their classes, one-hot.
    alpha, beta : float
        Weight, and sharpness: how fast it falls with the distance.

    Returns
    -------
    logits : Tensor of shape (n, K)
    """
    return alpha * torch.exp(-beta * (1 - images @ keys.T)) @ values


def linear_probe(Z, codes, weights, start, C):
    """Return a logistic regression whose penalty pulls it to given weights.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    codes : ndarray of int of shape (n,)
    weights : ndarray of shape (n,)
    start : ndarray of shape (K, D)
        Weights it is pulled to.
    C : float
        Inverse strength of the penalty, on the intercept too.

    Returns
    -------
    coef : ndarray of shape (K, D)
    intercept : ndarray of shape (K,)
    """
    A = np.column_stack([Z, np.ones(len(Z))]).astype(np.float64)
    base = Z @ start.T  # (n, K)
    rows = np.arange(len(Z))

    def loss(flat):
        change = flat.reshape(len(start), -1)
        log_p = log_softmax(base + A @ change.T, axis=1)
        error = np.exp(log_p)
        error[rows, codes] -= 1
        value = -C * (weights * log_p[rows, codes]).sum() + (flat @ flat) / 2
        gradient = C * (error * weights[:, None]).T @ A + change
        return value, gradient.ravel()

    first = np.zeros(len(start) * A.shape[1])
    # the default tolerances end far from the optimum where C is large
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    change = found.x.reshape(len(start), -1)
    return start + change[:, :-1], change[:, -1]


def linear_probes(Z, codes, weights, n_classes, C):
    """Return `linear_probe` pulled to zero, for several weightings of the same rows.

    The rows left out of a fold have weight 0 in it.

    Parameters
    ----------
    Z : ndarray of shape (m, D)
    codes : ndarray of int of shape (m,)
    weights : ndarray of shape (n_probes, m)
    n_classes : int
    C : float

    Returns
    -------
    coef : ndarray of shape (n_probes, n_classes, D)
    intercept : ndarray of shape (n_probes, n_classes)
    """
    # the penalty keeps the weights among the rows: no more directions than rows count
    left, sizes, basis = np.linalg.svd(np.asarray(Z, np.float64), full_matrices=False)
    A = np.column_stack([left * sizes, np.ones(len(Z))])
    T = np.eye(n_classes)[codes]
    given = C * weights[:, :, None]
    shape = len(weights), n_classes, A.shape[1]

    def loss(flat):
        W = flat.reshape(shape)
        log_p = log_softmax(A @ W.transpose(0, 2, 1), axis=2)  # (n_probes, m, K)
        value = (flat @ flat) / 2 - (given * T * log_p).sum()
        error = given * (np.exp(log_p) - T)
        return value, (error.transpose(0, 2, 1) @ A + W).ravel()

    options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-5}
    start = np.zeros(np.prod(shape))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    W = found.x.reshape(shape)
    return W[:, :, :-1] @ basis, W[:, :, -1]


def left_out_probe(z, given, C):
    """Return a linear probe of labeled rows, and its out-of-fold predictions.

    Parameters
    ----------
    z : ndarray of shape (n, D)
        Rows of length 1, or of about this length in the mean.
    given : LabeledRows
    C : float

    Returns
    -------
    coef : ndarray of shape (K, D)
    intercept : ndarray of shape (K,)
    log_p : ndarray of shape (n_left_out, K)
    """
    coef, bias = linear_probes(
        z[given.rows], given.codes, given.training_weights(), given.n_classes, C
    )
    out = given.left_out
    own = given.fold[out]
    logits = np.einsum("mkd,md->mk", coef[own], z[given.rows[out]]) + bias[own]
    return coef[-1], bias[-1], log_softmax(logits, axis=1)


def corrected_probe(Z, codes, weights, start, C):
    """Return `linear_probe` of the classes that have rows; the others keep ``start``.

    A class without labeled rows may still exist.
    """
    found, own_codes = np.unique(codes, return_inverse=True)
    coef, intercept = start.copy(), np.zeros(len(start))
    coef[found], intercept[found] = linear_probe(Z, own_codes, weights, start[found], C)
    return coef, intercept


def choose_c(probe, Z, codes, weights, start, seed, n_folds=5):
    """Return the C whose probes are best on rows left out.

    Parameters
    ----------
    probe : callable
        `linear_probe` or `corrected_probe`.
    Z, codes, weights, start
        Arguments of ``probe``.
    seed : int
        Of the folds.
    n_folds : int, default=5
    """
    n_folds = min(n_folds, len(Z))
    fold = np.random.default_rng(seed).permutation(len(Z)) % n_folds
    losses = []
    for C in _C_GRID:
        total = 0.0
        for k in range(n_folds):
            held, rest = fold == k, fold != k
            if not rest.any():
                continue
            coef, bias = probe(Z[rest], codes[rest], weights[rest], start, C)
            logits = Z[held] @ coef.T + bias
            total += _cross_entropy(logits, codes[held], weights[held])
        losses.append(total)
    return float(_C_GRID[int(np.argmin(losses))])


def tuned_keys(
    keys, values, weight, codes, weights, alpha, beta, embed, n_epochs, lr, batch_size
):
    """Return the keys of a memory, trained on the labeled rows: Tip-Adapter-F.

    Parameters
    ----------
    keys : ndarray of shape (m, D)
    values : ndarray of shape (m, K)
    weight : ndarray of shape (K, D)
        Of the classifier that the memory is added to.
    codes : ndarray of int of shape (m,)
    weights : ndarray of shape (m,)
        On average 1.
    alpha, beta : float
        See `remembered`.
    embed : callable
        Returns the rows' embeddings (m, D) of length 1, of new views in each epoch.
    n_epochs : int
    lr : float
        Of AdamW at first; it falls by half a cosine.
    batch_size : int

    Returns
    -------
    keys : ndarray of shape (m, D)
        Of any length.
    """
    keys, codes = nn.Parameter(_tensor(keys).clone()), torch.as_tensor(codes)
    values, weight, weights = map(_tensor, (values, weight, weights))
    n_batches = -(-len(keys) // batch_size)
    optimizer = torch.optim.AdamW([keys], lr=lr, eps=1e-4)  # as published
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, n_epochs * n_batches
    )
    for _ in range(n_epochs):
        Z = _tensor(embed())
        for rows in torch.randperm(len(Z)).split(batch_size):
            logits = Z[rows] @ weight.T
            logits = logits + remembered(Z[rows], keys, values, alpha, beta)
            losses = cross_entropy(logits, codes[rows], reduction="none")
            optimizer.zero_grad()
            (weights[rows] * losses).mean().backward()
            optimizer.step()
            schedule.step()
    return keys.detach().double().numpy()


def choose_memory(Z, keys, codes, weights, values, logits, alpha, beta):
    """Return alpha and beta of a memory; "auto": the best in cross-validation.

    Parameters
    ----------
    Z, keys : ndarray of shape (n, D)
        Embeddings of the same rows, as queries and as keys.
    codes : ndarray of int of shape (n,)
    weights : ndarray of shape (n,)
    values : ndarray of shape (n, K)
    logits : ndarray of shape (n, K)
        Without the memory.
    alpha, beta : float or "auto"
    """
    distance = 1 - Z @ keys.T
    betas = _BETA_GRID if beta == "auto" else [beta]
    alphas = _ALPHA_GRID if alpha == "auto" else [alpha]
    best = np.inf, float(alphas[0]), float(betas[0])  # if no loss is finite
    for b in betas:
        near = np.exp(-b * distance)
        np.fill_diagonal(near, 0)  # a row is not to remember itself
        memory = near @ values
        for a in alphas:
            loss = _cross_entropy(logits + a * memory, codes, weights)
            if loss < best[0]:
                best = loss, float(a), float(b)
    return best[1:]


def _cross_entropy(logits, codes, weights):
    log_p = log_softmax(logits, axis=1)
    return -float((weights * log_p[np.arange(len(codes)), codes]).sum())
