"""The slow twin of ALTI-Logit: tokens, heads and layers one at a time, from a model's weights and its hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, GPT2LMHeadModel, PreTrainedModel


@torch.no_grad()
def alti_logit(net: PreTrainedModel, ids: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, Tensor]:
    """phi of every token of the sequence for the mean logit of ``answer``, and what attention adds to it by layer.

    Args:
        net: with eager attention.
        ids: of the prompt and of the answer but its last token.
        answer: whose tokens are predicted at the last places.
    """
    found = net(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True, output_hidden_states=True)
    n, last = len(ids), _last_state(net, ids)
    rollout = torch.eye(n, dtype=last.dtype)
    phi, added = torch.zeros(n, dtype=last.dtype), []
    for number, block in enumerate(net.transformer.h if isinstance(net, GPT2LMHeadModel) else net.model.layers):
        x, weights = found.hidden_states[number][0], found.attentions[number][0]
        messages, bias = _messages(net, block, x, weights)
        update = torch.zeros(n, dtype=last.dtype)
        for step, token in enumerate(answer):
            t = n - len(answer) + step
            for s in range(t + 1):
                update[s] += _logit_of(net, token, last[t], messages[t][s]) / len(answer)
        for s in range(n):
            for i in range(n):
                phi[i] += update[s] * rollout[s, i]
        added.append(update.sum())
        rollout = _mixing(x, messages, bias) @ rollout
    return phi, torch.stack(added)


def _last_state(net: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """What the last normaliser is put on."""
    kept = []
    norm = net.transformer.ln_f if isinstance(net, GPT2LMHeadModel) else net.model.norm
    handle = norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0]))
    net(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0]


def _messages(net: PreTrainedModel, block, x: Tensor, weights: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """F of all pairs, target by target, and what the bias of W_O adds to each token."""
    n, d = x.shape
    normed = block.ln_1(x) if isinstance(net, GPT2LMHeadModel) else block.input_layernorm(x)
    if isinstance(net, GPT2LMHeadModel):
        values = normed @ block.attn.c_attn.weight[:, 2 * d :] + block.attn.c_attn.bias[2 * d :]
        output, bias = block.attn.c_proj.weight.T, block.attn.c_proj.bias
    else:
        values, output, bias = block.self_attn.v_proj(normed), block.self_attn.o_proj.weight, torch.zeros(d).to(x)
    n_heads = len(weights)
    width = output.shape[1] // n_heads
    per_group = n_heads // (values.shape[1] // width)
    messages = []
    for t in range(n):
        row = []
        for s in range(n):
            message = torch.zeros(d, dtype=x.dtype)
            for head in range(n_heads):
                group = head // per_group
                value = values[s, group * width : (group + 1) * width]
                message += weights[head, t, s] * (output[:, head * width : (head + 1) * width] @ value)
            row.append(message)
        if isinstance(net, Gemma3ForCausalLM):
            norm = block.post_attention_layernorm
            scale = (1 + norm.weight) / (sum(row).square().mean() + norm.eps).sqrt()
            row = [scale * message for message in row]
        messages.append(row)
    return messages, bias


def _mixing(x: Tensor, messages: list[list[Tensor]], bias: Tensor) -> Tensor:
    rows = []
    for t, row in enumerate(messages):
        y = x[t] + sum(row) + bias
        kept = []
        for s, message in enumerate(row):
            share = message + x[t] if s == t else message
            kept.append(max(0.0, float(y.abs().sum() - (y - share).abs().sum())) if s <= t else 0.0)
        if sum(kept) == 0:  # nothing leads to y
            kept[t] = 1.0
        rows.append(torch.tensor(kept, dtype=x.dtype) / sum(kept))
    return torch.stack(rows)


def _logit_of(net: PreTrainedModel, token: int, last: Tensor, part: Tensor) -> Tensor:
    """What ``part`` of a residual state adds to a logit, the last normaliser's scale that of the whole state."""
    direction = net.lm_head.weight[token]
    if isinstance(net, GPT2LMHeadModel):
        norm = net.transformer.ln_f
        scale = (last.var(unbiased=False) + norm.eps).sqrt()
        return direction @ (norm.weight * (part - part.mean()) / scale)
    norm = net.model.norm
    gain = 1 + norm.weight if isinstance(net, Gemma3ForCausalLM) else norm.weight
    eps = norm.eps if isinstance(net, Gemma3ForCausalLM) else norm.variance_epsilon
    return direction @ (gain * part / (last.square().mean() + eps).sqrt())
