import pytest
import torch
from compressed_recall import compressed_recall, stored_by

from eigenscope.data import RecallTask, draw_recall
from eigenscope.kv import Exact, KVCodec, LowRankInt8, ScoreAwareCodec, TransformCodec, UniformInt, nbytes
from eigenscope.nn import CausalTransformer, attach_hooks

TASK = RecallTask(context=80, pairs=10, queries=8, keys=16, values=16, fillers=4)
BLOCKS, HEADS, WIDTH, COUNT = 2, 2, 8, 12


def network(key_heads=HEADS, seed=0):
    torch.manual_seed(seed)
    return CausalTransformer(TASK.vocabulary, width=32, num_heads=4, num_key_heads=key_heads, mlp_width=32)


def check(codec, net=None, seed=0, **options):
    net = net or network()
    tokens, labels = draw_recall(TASK, 1 + seed, torch.arange(COUNT))
    calibration, _ = draw_recall(TASK, 100, torch.arange(8))
    return compressed_recall(net, tokens, labels, codec, calibration=calibration, **options), tokens, labels


def test_exact_codes_change_no_answer():
    net = network()
    result, tokens, labels = check(Exact(), net, dtype=None)
    expected = net(tokens)[:, 80:].argmax(-1)
    assert torch.equal(result.answers, expected)
    right = expected == labels[:, 80:]
    assert torch.equal(result.right, right)
    assert result.recall == right.double().mean()
    assert (result.error_keys, result.error_values) == (0.0, 0.0)
    assert result.bits_per_element() == 32.0
    assert check(Exact())[0].bits_per_element() == 16.0


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_questions_see_exact_ends_and_a_decoded_middle(key_heads):
    """Equal to replacing the middle in the hook points of a second pass over all tokens, block after block."""
    net, codec = network(key_heads), UniformInt(3)
    result, tokens, _ = check(codec, net, dtype=None, sinks=4, recent=32)
    held = stored_by(net, tokens[:, :80])
    fitted = codec.fit(held.keys, groups=2)  # it learns nothing, so that what it is fitted on does not matter
    compressed = {
        kind: codec.decode(codec.encode(X[..., 4:48, :], fitted), fitted)
        for kind, X in (("keys", held.keys), ("values", held.values))
    }

    def replace(name, x):
        block, kind = int(name.split(".")[1]), name.rpartition(".")[2]
        exact = getattr(held, kind)[:, block]  # the context's own computation stays exact
        return torch.cat([exact[..., :4, :], compressed[kind][:, block], exact[..., 48:, :], x[..., 80:, :]], -2)

    with attach_hooks(net, "*.keys", "*.values", hook=replace):
        logits = net(tokens)[:, 80:]
    assert torch.equal(result.answers, logits.argmax(-1))
    assert not torch.equal(result.answers, net(tokens)[:, 80:].argmax(-1))


def test_bytes_are_those_held():
    net, codec = network(), TransformCodec(bits_per_element=3.0)
    result, tokens, _ = check(codec, net)
    held = stored_by(net, tokens[:, :80], torch.float16)
    known = stored_by(net, draw_recall(TASK, 100, torch.arange(8))[0], torch.float16)
    states, codes = [], []
    for X, calibration in ((held.keys, known.keys), (held.values, known.values)):
        states.append(codec.fit(calibration[..., 4:48, :], groups=2))
        codes.append(codec.encode(X[..., 4:48, :], states[-1]))
    exact = COUNT * BLOCKS * HEADS * (4 + 32) * WIDTH * 2 * 2
    assert result.code_bytes == nbytes(codes) + exact
    assert result.state_bytes == nbytes(states) > 0
    alone = nbytes(codes) / COUNT + exact / COUNT + nbytes(states)
    numbers = 80 * 2 * BLOCKS * HEADS * WIDTH
    assert result.bits_per_element() == pytest.approx(8 * alone / numbers)
    assert result.bits_per_element(10) == pytest.approx(8 * (alone - 0.9 * nbytes(states)) / numbers)


def test_every_option_changes_what_is_stored():
    base = check(UniformInt(4))[0]
    assert check(UniformInt(4), sinks=6)[0].code_bytes > base.code_bytes
    assert check(UniformInt(4), recent=40)[0].code_bytes > base.code_bytes
    assert check(UniformInt(4), dtype=torch.float32)[0].code_bytes > base.code_bytes
    none = check(UniformInt(4), sinks=0, recent=0)[0]
    assert none.code_bytes < base.code_bytes


def test_keys_and_values_have_their_own_codec():
    result = check(KVCodec(keys=Exact(), values=LowRankInt8(2)))[0]
    assert result.error_keys == 0 < result.error_values
    result = check(KVCodec(keys=LowRankInt8(2), values=Exact()))[0]
    assert result.error_values == 0 < result.error_keys


def test_a_score_aware_codec_is_given_queries_and_attention():
    plain, aware = (check(codec(bits_per_element=3.0))[0] for codec in (TransformCodec, ScoreAwareCodec))
    assert aware.error_keys != plain.error_keys
    assert aware.error_values != plain.error_values
    assert check(ScoreAwareCodec(bits_per_element=3.0), network(1))[0].error_keys < 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="must leave some of 80 tokens, got 40 and 40"):
        check(Exact(), sinks=40, recent=40)
    with pytest.raises(ValueError, match="must leave some"):
        check(Exact(), recent=-1)
    net, (tokens, labels) = network(), draw_recall(TASK, 1, torch.arange(2))
    with pytest.raises(ValueError, match="calibration must have sequences of 88 tokens, got 87"):
        compressed_recall(net, tokens, labels, Exact(), calibration=tokens[:, 1:])
