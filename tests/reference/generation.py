"""Meta-AttnLRP of a generated answer as the paper computes it: a pass for every step, target and coalition."""

from __future__ import annotations

import warnings
from math import factorial

import numpy as np
import torch
from shapiq.approximator.sampling import CoalitionSampler
from sklearn.ensemble import GradientBoostingRegressor

COALITIONS_PER_PLAYER = 32


def n_coalitions(n):
    """B: coalitions of the n-1 others, for each step and target."""
    return COALITIONS_PER_PLAYER * (n - 1)


def n_passes(n, n_steps):
    """Forward and backward passes of the whole procedure."""
    return n_steps * n * n_coalitions(n)


def step_relevance(model, method, prompt, answer, step, coalitions):
    """Relevance ``(k, n)`` of the prompt's players for the logit of one generated token, from the text before it."""
    embed = model.net.get_input_embeddings()
    sequence = embed(torch.tensor([*prompt.ids, *answer[:step]], device=model.device))
    absent = embed(torch.tensor(model.absent_id, device=model.device))
    present = torch.ones(len(coalitions), len(sequence), dtype=torch.bool)
    present[:, list(prompt.positions)] = torch.from_numpy(np.asarray(coalitions))
    rows = torch.where(present.to(model.device)[..., None], sequence, absent)
    with method.backward_rules(model.net), torch.enable_grad():
        rows = rows.detach().requires_grad_()
        hidden = model.net.get_decoder()(inputs_embeds=rows, use_cache=False).last_hidden_state[:, -1]
        logits = hidden.float() @ model.net.get_output_embeddings().weight[answer[step]].float()
        (gradients,) = torch.autograd.grad(logits.sum(), rows)
    relevance = (rows.float() * gradients.float()).sum(-1)[:, list(prompt.positions)]
    return relevance.detach().cpu().double().numpy()


def draw_coalitions(n_players, budget, seed):
    """Distinct coalitions of shapiq's sampler, ``(k, m)``: sizes by 1/(k(m-k)), with complements, empty and full."""
    sizes = np.arange(n_players + 1)
    kernel = np.zeros(n_players + 1)
    kernel[1:-1] = 1 / (sizes[1:-1] * (n_players - sizes[1:-1]))
    sampler = CoalitionSampler(n_players, kernel, pairing_trick=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sampling might be inefficient|Not all budget is required", UserWarning)
        sampler.sample(min(budget, 1 << n_players))
    return sampler.coalitions_matrix.astype(bool)


def tree_shapley(coalitions, values, seed):
    """Shapley values ``(m,)`` of boosted trees fitted to the values, from all their predictions."""
    m = coalitions.shape[1]
    boost = GradientBoostingRegressor(n_estimators=100, max_depth=4, learning_rate=0.1, random_state=seed)
    boost.fit(coalitions, values)
    rows = np.array([[index >> player & 1 for player in range(m)] for index in range(1 << m)], bool)
    predicted = boost.predict(rows)
    size = rows.sum(1)
    phi = np.zeros(m)
    for player in range(m):
        without = np.flatnonzero(~rows[:, player])
        weight = np.array([factorial(s) * factorial(m - s - 1) / factorial(m) for s in size[without]])
        phi[player] = weight @ (predicted[without | 1 << player] - predicted[without])
    return phi


def meta_attributions(relevance, n, n_steps, seed):
    """The matrix ``(n, n)``: of each step and target its own coalitions and trees, then the mean over steps.

    ``relevance(step, coalitions)`` gives ``(k, n)``; it is asked for one target's coalitions at a time.
    """
    rng = np.random.default_rng(seed)
    matrices = np.zeros((n_steps, n, n))
    for step in range(n_steps):
        for target in range(n):
            others = [player for player in range(n) if player != target]
            coalitions = draw_coalitions(n - 1, n_coalitions(n), int(rng.integers(1 << 31)))
            whole = np.ones((len(coalitions), n), bool)
            whole[:, others] = coalitions
            values = relevance(step, whole)[:, target]
            matrices[step, target, others] = tree_shapley(coalitions, values, seed)
            alone = np.zeros((1, n), bool)
            alone[0, target] = True
            matrices[step, target, target] = relevance(step, alone)[0, target]
    return matrices.mean(0)
