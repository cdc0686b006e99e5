"""How many bytes does a key need? Codes of equal size beside the bound that no code can beat.

python examples/kv.py
"""

import torch

from eigenscope.kv import LowRankInt8, TransformCodec, UniformInt, bits_per_element


def main() -> None:
    """Prints bits and errors of codes of keys whose spectrum decays."""
    keys = torch.randn(1, 2, 1024, 64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 65) ** -0.7
    for codec in (UniformInt(bits=4), LowRankInt8(rank=16), TransformCodec(bits_per_element=2.0)):
        state = codec.fit(keys)
        code = codec.encode(keys, state)
        error = (codec.decode(code, state) - keys).norm() / keys.norm()
        bits = bits_per_element(keys.numel(), code, state)
        print(f"{type(codec).__name__}: {bits:.2f} bits a number, everything counted; relative error {error:.3f}")


if __name__ == "__main__":
    main()
