"""Int8 and bfloat16 weights: accuracy, memory, bits that do not depend on the batch, and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slap_fast import native
from slap_fast.errors import ModelError
from slap_fast.models import quantization
from slap_fast.models.portable.files import export_towers
from slap_fast.models.quantization import Int8Linear, is_int8
from slap_fast.models.slap import SLAP
from slap_fast.ops.int8_product import MAX_DEPTH, Int8Weight, int8_product, pack_int8
from tests.models.builders import random_clips
from tests.models.saved import TEXTS, tiny_slap
from tests.ops._native import instruction_sets, native_code, needs_native

pytestmark = needs_native


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_slap().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return SLAP.from_pretrained(folder, precision="int8")


def _quantized(x, *, by_reciprocal):
    """Oracle: the nearest whole steps of each row as float64, and the size of a step."""
    largest = x.abs().amax(dim=1, keepdim=True)
    sizes = largest / 127
    return (x * (127 / largest) if by_reciprocal else x / sizes).round().double(), sizes.double()


@pytest.mark.parametrize("isa", instruction_sets())
@given(
    rows=st.integers(0, 30),
    columns=st.integers(0, 70),
    depth=st.integers(0, 90),
    has_bias=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_a_product_is_that_of_the_quantized_rows_and_weights(isa, rows, columns, depth, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(size, depth, generator=generator) for size in (rows, columns))
    x = torch.cat([x, torch.full((rows, 3), torch.nan)], dim=1)[:, :depth]  # rows that are apart
    bias = torch.randn(columns, generator=generator) if has_bias else None
    with native_code(isa=isa):
        product = int8_product(x, pack_int8(weight), bias)
        alone = [int8_product(row[None], pack_int8(weight), bias) for row in x]
    if not depth:
        assert torch.equal(product, torch.zeros(rows, columns) + (0 if bias is None else bias))
        return
    (steps_x, size_x), (steps_w, size_w) = _quantized(x, by_reciprocal=True), _quantized(weight, by_reciprocal=False)
    exact = (steps_x @ steps_w.t()) * size_x * size_w.t() + (0 if bias is None else bias)
    torch.testing.assert_close(product.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(product, torch.cat([product[:0], *alone]))


def test_large_products_do_not_saturate():
    """As sums of pairs in 16 bits would: twice 127 * 127, or 255 * 127, is at the end of their range or beyond."""
    for isa in instruction_sets():
        with native_code(isa=isa):
            for sign in (1, -1):
                product = int8_product(torch.full((7, 768), 0.5), pack_int8(torch.full((24, 768), 0.25 * sign)))
                torch.testing.assert_close(product, torch.full((7, 24), 96.0 * sign), rtol=1e-6, atol=0)


def test_the_deepest_weight_has_exact_sums_and_a_deeper_one_is_refused():
    ones = pack_int8(torch.ones(2, MAX_DEPTH))
    for sign in (1, -1):
        assert torch.equal(
            int8_product(torch.full((3, MAX_DEPTH), sign * 1.0), ones), torch.full((3, 2), sign * 65536.0)
        )
    with pytest.raises(ValueError, match="at most 65536 inputs"):
        pack_int8(torch.ones(2, MAX_DEPTH + 1))


def test_values_that_are_not_finite_stay_in_their_row():
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    weight = pack_int8(torch.randn(20, 40, generator=torch.Generator().manual_seed(1)))
    clean = int8_product(x, weight)
    x[2, 5], x[4, 0], x[7] = torch.inf, torch.nan, 0.0
    product = int8_product(x, weight)
    assert product[[2, 4]].isnan().all()
    assert (product[7] == 0).all()
    others = [0, 1, 3, 5, 6, 8]
    assert torch.equal(product[others], clean[others])
    with pytest.raises(ValueError, match="not finite"):
        pack_int8(torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"shape \(2, 5\) and the weight 4 inputs"),
        ({"x": torch.zeros(2, 4).double()}, "x is torch.float64"),
        ({"x": torch.zeros(2, 4, device="meta")}, "x is torch.float32 on meta"),
        ({"bias": torch.zeros(2)}, r"bias has shape \(2,\)"),
        ({"bias": torch.zeros(3).bfloat16()}, "bias is torch.bfloat16"),
    ],
)
def test_the_error_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        int8_product(**{"x": torch.zeros(2, 4), "weight": pack_int8(torch.ones(3, 4)), "bias": None} | change)
    packed = pack_int8(torch.ones(3, 4))
    with pytest.raises(ValueError, match="pack the weight again"):
        int8_product(torch.zeros(2, 4), Int8Weight(packed.panels[1:], *packed[1:]))


def test_embeddings_are_close_to_those_of_float32(folder, model):
    """0.999 is what the documentation states; tiny layers have far larger errors than those of real sizes."""
    full, clips = SLAP.from_pretrained(folder), random_clips([1.0, 0.3, 2.7, 5.0])
    for ours, other in (
        (model.encode_audio(clips), full.encode_audio(clips)),
        (model.encode_text(TEXTS), full.encode_text(TEXTS)),
    ):
        cosines = (ours * other).sum(dim=1)
        assert cosines.min() > 0.999
        assert not torch.equal(ours, other)
    assert model.caption(clips, max_length=5)  # the decoder is float32


def test_the_blocks_of_both_towers_need_a_quarter_of_the_memory(folder, model):
    full = SLAP.from_pretrained(folder)
    layers = {name: layer for name, layer in full.named_modules() if isinstance(layer, nn.Linear)}
    quantized = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    assert quantized.keys() == {
        name
        for name in layers
        if name.startswith(("audio_encoder.", "text_encoder.")) and name != "audio_encoder.patch_embedding"
    }
    for name, layer in quantized.items():
        assert layer.panels.numel() <= 1.1 * layers[name].weight.numel() + 2048  # whole panels; a byte each
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_bits_of_an_embedding_depend_on_neither_its_pack_nor_the_threads(model):
    lengths = np.random.default_rng(0).gamma(1.0, 0.7, 40) + 0.001
    clips = random_clips([*lengths.tolist(), 31.0, 0.2])
    alone = torch.cat([model.encode_audio([clip]) for clip in clips])
    for threads in (1, 3):
        with native_code(threads=threads):
            assert torch.equal(model.encode_audio(clips), alone)
    long, texts = "rain " * 30, [*TEXTS, "a dog barks at a bell"]
    assert torch.equal(model.encode_text([*texts, long])[:-1], torch.cat([model.encode_text(text) for text in texts]))


def test_training_saving_and_export_are_refused(model, tmp_path):
    with pytest.raises(ModelError, match=r"cannot be trained; load it with precision=\"fp32\""):
        model.train()
    assert not model.training
    with pytest.raises(ModelError, match="has no gradients"):
        model(random_clips([1.0]), TEXTS)
    with torch.no_grad():
        assert torch.equal(model(random_clips([1.0])).audio, model.encode_audio(random_clips([1.0])))
    with pytest.raises(ModelError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match="cannot be exported"):
        export_towers(model, tmp_path / "exported", "torch")
    assert not any(tmp_path.iterdir())
    # A state dict has all weights: loaded elsewhere, none is missing without a message.
    with pytest.raises(RuntimeError, match=r"Unexpected key.*panels"):
        tiny_slap().load_state_dict(model.state_dict())


@pytest.mark.skipif(native.isa() == "baseline", reason="no other instruction set")
def test_weights_that_are_laid_out_for_another_processor_are_refused(folder, model):
    """Panels of two kernels may have the same size."""
    with native_code(isa="baseline"):
        other = SLAP.from_pretrained(folder, precision="int8")
        with pytest.raises(ModelError, match=r"for the kernel .*, and this model for baseline"):
            other.load_state_dict(model.state_dict())
    clips = random_clips([1.0])
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same.load_state_dict(model.state_dict())
        assert torch.equal(same.encode_audio(clips), model.encode_audio(clips))


def test_a_precision_that_cannot_be_had_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'int4'; choose one of 'fp32', 'bf16', 'int8'"):
        SLAP.from_pretrained(tmp_path, precision="int4")
    with pytest.raises(ModelError, match="is for CPUs, and device is 'cuda'"):
        SLAP.from_pretrained(tmp_path, device="cuda", precision="int8")
    monkeypatch.setattr(native, "unavailable", lambda: "no compiler")
    with pytest.raises(ModelError, match="needs native code: no compiler"):
        SLAP.from_pretrained(tmp_path, precision="int8")


def test_other_dtypes_are_refused_and_not_computed_with_less_precision(model):
    moved = copy.deepcopy(model).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*; int8 weights take float32"):
        moved.encode_audio(random_clips([1.0]))


def test_bf16_converts_all_weights_and_warns_where_it_is_emulated(folder, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, warnings in ((True, 0), (False, 1)):
        quantization._warn_once.cache_clear()
        caplog.clear()
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        with caplog.at_level(logging.WARNING, logger=quantization.logger.name):
            model = SLAP.from_pretrained(folder, precision="bf16")
        assert [record.getMessage().startswith("bf16 is emulated on this CPU") for record in caplog.records] == (
            [True] * warnings
        )
    caplog.clear()
    quantization._warn_once.cache_clear()
    SLAP.from_pretrained(folder, precision="bf16", device="meta")  # not on this CPU
    assert not caplog.records
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not is_int8(model)
    clips = random_clips([1.0, 0.3])
    cosines = (model.encode_audio(clips) * SLAP.from_pretrained(folder).encode_audio(clips)).sum(dim=1)
    assert cosines.min() > 0.999


@pytest.mark.skipif(native.isa() == "baseline", reason="no other instruction set")
def test_a_warning_names_a_processor_without_code_for_int8(folder, caplog):
    quantization._warn_once.cache_clear()
    with native_code(isa="baseline"), caplog.at_level(logging.WARNING, logger=quantization.logger.name):
        SLAP.from_pretrained(folder, precision="int8")
    assert "(baseline): it may be slower than fp32" in caplog.text
