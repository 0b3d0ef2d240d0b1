"""What the layers should compute, in plain numpy and float64."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def conv(x, kernel, stride=1, padding=None, bias=0.0):
    """[B, H, W, C] by [K, K, C, F], one output pixel at a time."""
    size = kernel.shape[0]
    side = (size - 1) // 2 if padding is None else padding
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (side, side), (side, side), (0, 0)])
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    y = np.empty((x.shape[0], height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.tensordot(patch, np.asarray(kernel, np.float64), 3)
    return y + bias


def max_pool(x, window, stride, padding=0):
    sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    x = np.pad(np.asarray(x, np.float64), sides, constant_values=-np.inf)
    height, width = ((n - window) // stride + 1 for n in x.shape[1:3])
    y = np.empty((x.shape[0], height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
            y[:, i, j] = patch.max((1, 2))
    return y


def max_pool_gradient(x, cotangent, window, stride, padding=0):
    """Where each window's maximum is unique."""
    sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    x = np.pad(np.asarray(x, np.float64), sides, constant_values=-np.inf)
    gradient = np.zeros(x.shape)
    for i, j in np.ndindex(cotangent.shape[1:3]):
        at = np.s_[:, i * stride : i * stride + window, j * stride : j * stride + window]
        is_largest = x[at] == x[at].max((1, 2), keepdims=True)
        gradient[at] += is_largest * cotangent[:, i : i + 1, j : j + 1]
    height, width = (n - padding for n in x.shape[1:3])
    return gradient[:, padding:height, padding:width]


def lstm(x, weights, biases, recurrent):
    """[B, T, D] -> h of each step [B, T, F]. Weights are four matrices by gate: i, f, g, o."""
    h = c = np.zeros((x.shape[0], recurrent['i'].shape[0]))
    steps = []
    for t in range(x.shape[1]):
        pre = {k: x[:, t] @ weights[k] + biases[k] + h @ recurrent[k] for k in 'ifgo'}
        c = sigmoid(pre['f'] + 1) * c + sigmoid(pre['i']) * np.tanh(pre['g'])
        h = sigmoid(pre['o']) * np.tanh(c)
        steps.append(h)
    return np.stack(steps, 1)


def gru(x, weights, biases, recurrent):
    """[B, T, D] -> h of each step [B, T, F]. Weights by gate: reset r, update s, new n."""
    h = np.zeros((x.shape[0], recurrent['r'].shape[0]))
    steps = []
    for t in range(x.shape[1]):
        own = {k: x[:, t] @ weights[k] + biases[k] for k in 'rsn'}
        r, s = (sigmoid(own[k] + h @ recurrent[k]) for k in 'rs')
        n = np.tanh(own['n'] + r * (h @ recurrent['n']))
        h = (1 - s) * n + s * h
        steps.append(h)
    return np.stack(steps, 1)


def recurrent(cell, x, params):
    """Either cell with the parameters of `nn.recurrent.Recurrent`."""
    gates, run = {'lstm': ('ifgo', lstm), 'gru': ('rsn', gru)}[cell]

    def by_gate(array):
        parts = np.split(np.asarray(array, np.float64), len(gates), axis=-1)
        return dict(zip(gates, parts, strict=True))

    inputs = params['input']
    return run(x, by_gate(inputs['kernel']), by_gate(inputs['bias']), by_gate(params['kernel']))


def visible(
    batch, length, keys, causal=False, window=None, stride=None, segments=None, key_segments=None
):
    """Bool [B, T, S]: whether query t may see key s."""
    ahead = np.arange(keys) - np.arange(length)[:, None]
    seen = np.ones((batch, length, keys), bool)
    if causal:
        seen &= ahead <= 0
    if window is not None:
        seen &= np.abs(ahead) < window
    if stride is not None:
        seen &= (np.abs(ahead) < stride) | (ahead % stride == 0)
    if segments is not None:
        key_segments = segments if key_segments is None else key_segments
        seen &= segments[:, :, None] == key_segments[:, None]
    return seen


def attention(query, key, value, logit_soft_cap=None, **masks):
    """[B, T, H, C], [B, S, K, C] twice -> [B, T, H, C], one query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, length, heads, size = query.shape
    seen = visible(batch, length, key.shape[1], **masks)
    out = np.zeros(query.shape)
    for b, t, h in np.ndindex(batch, length, heads):
        shared = h // (heads // key.shape[2])
        keys = seen[b, t]
        if not keys.any():
            continue
        logits = key[b, keys, shared] @ query[b, t, h] / np.sqrt(size)
        if logit_soft_cap is not None:
            logits = logit_soft_cap * np.tanh(logits / logit_soft_cap)
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ value[b, keys, shared]
    return out
