"""Batch norms of a frozen network folded into its convolutions: the same answer with fewer passes."""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norms(network: nn.Module, probe: Tensor) -> nn.Module:
    """Fold, in place, every batch norm that sees just the output of a convolution used once; the network must
    be in evaluation mode and stay frozen. [ours]

    probe: images (B, 3, H, W) that show which layer feeds which. Where layers are connected in a way that
    this does not see, so that the answer would change, the network is left as it is.
    """
    found, before = _fed_by_convolutions(network, probe)
    kept = {}
    for name, (conv, norm) in found.items():
        kept[name] = (norm, conv.weight, conv.bias)
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        conv.requires_grad_(False)
        _replace(network, name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    if not all(_same(a, b) for a, b in zip(before, network(probe), strict=True)):
        for name, (norm, weight, bias) in kept.items():
            conv = found[name][0]
            conv.weight, conv.bias = weight, bias
            _replace(network, name, norm)
    return network


def _fed_by_convolutions(network: nn.Module, probe: Tensor):
    """By the batch norm's name: the convolution whose output is its input, and it; and what the network
    answers to the probe."""
    names = {module: name for name, module in network.named_modules()}
    outputs, found, calls = {}, {}, {}

    def note(module, inputs, output):
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = (module, output)  # the output too, so that its id stays its own
        elif id(inputs[0]) in outputs:
            found[names[module]] = (outputs[id(inputs[0])][0], module)

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, kinds)]
    try:
        answer = network(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: pair for name, pair in found.items() if all(calls[module] == 1 for module in pair)}, answer


def _replace(network: nn.Module, name: str, module: nn.Module):
    parent, _, child = name.rpartition(".")
    network.get_submodule(parent)._modules[child] = module


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-3 * one.norm())
