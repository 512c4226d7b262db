"""Random inputs and comparisons for the tests of the reference modules."""
import torch

CLOSE = 1e-5  # the largest difference from another implementation, in fp32

def largest_difference(a, b):
    return float((a - b).abs().max())


def largest_weight_difference(module, other):
    return max(
        largest_difference(a, b)
        for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )


def random_hidden(tokens, size, batch=2, seed=1):
    return torch.randn(batch, tokens, size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model, ids):
    return model(ids).logits
