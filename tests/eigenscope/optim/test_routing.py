from torch.optim import SGD, AdamW

from eigenscope.nn import DeiT, LinearReadoutAutoencoder, PatchSVAE, SimplexVAE
from eigenscope.nn.transformers.taps import TapConfig
from eigenscope.optim import SOAP, Route, Routed, SplitOptimizer, routing_table


def matrices(network):
    """The names of those in a network, which are the same if it is part of another."""
    within = [
        {
            route.name.removeprefix(prefix)
            for route in SplitOptimizer(network.named_parameters(prefix.removesuffix(".")), SOAP, AdamW).routes
            if route.optimizer == "SOAP"
        }
        for prefix in ("", "net.")
    ]
    assert within[0] == within[1]
    return within[0]


def two_dimensional(network):
    return {name for name, parameter in network.named_parameters() if parameter.ndim == 2}


def test_a_transformers_blocks_are_its_matrices():
    taps = TapConfig(layers=[1], rank=4, features="svd")
    net = DeiT(num_classes=5, image_size=8, patch_size=4, width=16, depth=2, num_heads=2, taps=taps)
    inside = {
        f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attention.qkv", "attention.projection", "mlp.0", "mlp.3")
    }
    assert matrices(net) == inside
    assert two_dimensional(net) - inside == {"head.0.weight", "head.4.weight"}


def test_an_autoencoders_outer_layers_are_none():
    outside = {"encoder.0.weight", "decoder.0.weight"}
    arguments = {"num_points": 8, "dim": 4, "patch_size": 4, "hidden": 16, "depth": 2}
    for net in (PatchSVAE(**arguments, num_cross=1), LinearReadoutAutoencoder(**arguments, num_cross=1)):
        assert two_dimensional(net) - matrices(net) == {*outside, "decoder.4.weight"}
    net = SimplexVAE(**arguments | {"depth": 9}, bottleneck=8, slots=1, image_size=8)
    assert two_dimensional(net) - matrices(net) == {*outside, "decoder.11.weight"}


def test_the_table_joins_what_is_alike():
    layers = (0, 1, 2, 5)
    routes = [
        Route("bias", (4,), "AdamW", "1-D"),
        *(Route(f"blocks.{i}.mlp.0.weight", (8, 4), "SOAP", "matrix") for i in layers),
        *(Route(f"blocks.{i}.norm.weight", (4,), "AdamW", "1-D") for i in layers),
        Route("blocks.6.mlp.0.weight", (8, 1000), "SOAP", "matrix"),
        Route("head.weight", (2, 4), "AdamW", "excluded by head.*"),
    ]
    assert routing_table(routes).splitlines() == [
        "parameters                        shape  count  numbers                 why",
        "---------------------------------------------------------------------------",
        "SOAP                                         5    8,128",
        "  blocks.{0-2,5}.mlp.0.weight     8 × 4      4      128              matrix",
        "  blocks.6.mlp.0.weight        8 × 1000      1    8,000              matrix",
        "AdamW                                        6       28",
        "  biases, gains                              5       20                 1-D",
        "  head.weight                     2 × 4      1        8  excluded by head.*",
    ]


def test_what_has_routes_is_routed():
    net = DeiT(num_classes=5, image_size=8, patch_size=4, width=16, depth=1, num_heads=2)
    assert isinstance(SplitOptimizer(net.named_parameters(), SOAP, AdamW), Routed)
    assert not isinstance(SGD(net.parameters(), 0.1), Routed)
