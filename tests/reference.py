"""The methods and FSA evaluated densely, step by step from the formulae: slow, and written apart from the package.

Every map is a (B, H, T, T) matrix, KL a (B, N, N, Q) tensor, pruning a walk down each sorted row.
"""
import torch
import torch.nn.functional as F


def attention_matrix(name, q, k, v, heads, features=None):
    """Return the attention map (B, H or 1, T, T)."""
    if name == 'proxy':
        f = features.flatten(2) / features.flatten(2).norm(dim=1, keepdim=True)
        s = torch.einsum('bcn,bcm->bnm', f, f)
        s = (s - 1.2 * s.mean((1, 2), keepdim=True)) * 3.0
        s[s < 0] = float('-inf')
        return s.softmax(-1)[:, None]
    if name == 'identity':
        return torch.eye(q.shape[1])[None, None].expand(len(q), 1, -1, -1)
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)  # noqa: E731
    parts = dict(q=split(q), k=split(k), v=split(v))
    pairs = [tuple(part) for part in name.split('+')]
    return sum((parts[a] @ parts[b].transpose(2, 3) / parts[a].shape[-1]**0.5).softmax(-1) for a, b in pairs)


def kl(probs):
    """Return KL(i‖j) with log(p + 1e-10), clamped at 0: (B, N, N)."""
    logs = (probs + 1e-10).log()
    return (probs[:, :, None] * (logs[:, :, None] - logs[:, None])).sum(-1).clamp(min=0)


def pruned(similarity, p):
    """Return S with −∞ outside what is kept, entry by entry."""
    out = torch.full_like(similarity, float('-inf'))
    for b in range(len(similarity)):
        for i, row in enumerate(similarity[b]):
            probs = row.softmax(0)
            total, threshold = 0.0, None
            for j in row.argsort(descending=True).tolist():
                total += float(probs[j])
                if threshold is not None and total > p:
                    break
                threshold = row[j]
            keep = row >= threshold
            out[b, i, keep] = row[keep]
    return out


def adapted_attention(z, z_uniform, lam, p):
    delta = 20 * z - 35 * z_uniform
    s = pruned(1 / (1 + kl(delta.softmax(-1))), p)
    weighted = s * (lam * s).exp()
    return weighted.masked_fill(s == float('-inf'), float('-inf')).softmax(-1)


def logits(visual, tokens, grid, text, attention, residual, mlp, fsa=None, features=None):
    """Return the cosines (B, N, Q) of a method, from the trunk's tokens (B, 1 + N, D)."""
    block = visual.transformer.resblocks[-1]
    heads = block.attn.num_heads
    q, k, v = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    a = attention_matrix(attention, q, k, v, heads, features)
    cls = attention != 'proxy'
    if not cls:
        def resize(x):
            image = x[:, 1:].transpose(1, 2).reshape(len(x), -1, *grid)
            return F.interpolate(image, features.shape[2:], mode='bilinear').flatten(2).transpose(1, 2)
        v, tokens = resize(v), resize(tokens)
    mass = 2.0 if '+' in attention else 1.0

    def cosines(matrix):
        """R(matrix) as cosines with the text; the matrix is (B, H or 1, T, T)."""
        values = v.reshape(*v.shape[:2], heads, -1).permute(0, 2, 1, 3)
        x = (matrix @ values).permute(0, 2, 1, 3).flatten(2)
        x = block.attn.out_proj(x)
        if residual:
            x = x + tokens
        if mlp:
            x = x + block.mlp(block.ln_2(x))
        x = visual.ln_post(x) @ visual.proj
        return F.normalize(x, dim=-1)[:, int(cls):] @ text.T

    z = cosines(a)
    if fsa is None:
        return z
    count = a.shape[-1]
    uniform = torch.full((len(v), 1, count, count), mass / count)
    w = adapted_attention(z, cosines(uniform), **fsa)
    if cls:
        w = torch.block_diag(torch.ones(1, 1), torch.zeros_like(w[0])).repeat(len(w), 1, 1).index_put(
            (torch.arange(len(w))[:, None, None], torch.arange(1, count)[None, :, None],
             torch.arange(1, count)[None, None]), w)
    w, a = w[:, None], a / mass
    return cosines(mass * (w @ a + a @ w + w) / 3)
