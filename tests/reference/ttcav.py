"""Slow twin of T-TCAV: an image, a token and a repeat at a time, through the layers of a ViT one by one."""

from __future__ import annotations

import math

import numpy as np
import torch


def through(net, pixels, layer: int):
    """The output of a layer, with a graph from it to the logits, the logits, and [CLS]'s attention by head."""
    vit = net.vit
    state = vit.embeddings(pixels[None])
    for block in vit.encoder.layer[: layer - 1]:
        state = block(state)
    block = vit.encoder.layer[layer - 1]
    attended = cls_attention(block, state)
    h = block(state).detach().requires_grad_()
    state = h
    for later in vit.encoder.layer[layer:]:
        state = later(state)
    return h, net.classifier(vit.layernorm(state)[:, 0])[0], attended


def cls_attention(block, state):
    """Of each head the softmax of what [CLS] asks and what each token answers."""
    inner, own = block.attention.attention, block.layernorm_before(state)[0]
    width, rows = inner.attention_head_size, []
    for head in range(inner.num_attention_heads):
        part = slice(head * width, (head + 1) * width)
        asked, answers = inner.query(own)[0, part], inner.key(own)[:, part]
        powers = [math.exp(float(asked @ answer) / math.sqrt(width)) for answer in answers]
        rows.append([power / sum(powers) for power in powers])
    return rows


def cav(positive, negative, steps: int = 50):
    """The unit normal of sum log(1 + exp(-y f)) + |w|^2 / 2, f = wx + b, by Newton's method."""
    x = np.concatenate([positive, negative])
    x1 = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    wanted = np.repeat([1.0, 0.0], [len(positive), len(negative)])
    penalty = np.diag([1.0] * x.shape[1] + [0.0])
    w = np.zeros(x1.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x1 @ w))
        gradient = x1.T @ (p - wanted) + penalty @ w
        w = w - np.linalg.solve((x1 * (p * (1 - p))[:, None]).T @ x1 + penalty, gradient)
    return w[:-1] / np.linalg.norm(w[:-1])


def measured(net, images, label: int, layer: int, vectors):
    """Of each CAV the score and the mean sum of d; and the mean map, of a class's images."""
    scores, sums, maps = [], [], []
    for v in vectors:
        positive, total = 0, 0.0
        for pixels in images:
            h, logits, attended = through(net, pixels, layer)
            (slope,) = torch.autograd.grad(logits[label], h)
            n_tokens = h.shape[1]
            a = [sum(row[t] for row in attended) / len(attended) for t in range(n_tokens)]
            d = [float(sum(slope[0, t, i] * v[i] for i in range(len(v)))) for t in range(n_tokens)]
            positive += sum(a[t] * d[t] for t in range(n_tokens)) / n_tokens > 0
            total += sum(d)
            factor = math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in d))
            maps.append([a[t] * factor * d[t] for t in range(n_tokens)])
        scores.append(positive / len(images))
        sums.append(total / len(images))
    return scores, sums, np.mean(maps, axis=0)
