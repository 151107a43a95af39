"""InternVL's tower and projector are transformers'. Oracles: `InternVLVisionModel` and `InternVLModel` (torch, float32)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.models.attention.pallas_tpu import block_size
from mmrlhf_jax.models.intern_vit import InternVit, InternVitConfig
from mmrlhf_jax.models.merge_projector import MergeProjector, merge_patches
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

torch = pytest.importorskip("torch")
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, InternVLVisionModel, Qwen2Config  # noqa: E402

TOLERANCE = 1e-5  # absolute; the project promises 1e-4
KINDS = dict(dtype=jnp.float32, param_dtype=jnp.float32)

MESH = make_mesh({}, jax.devices()[:1])

SHAPES = {
    "as the 300M tower": InternVitConfig(36, 52, layers=3, heads=3, image_size=28, patch_size=7, feature_layers=3),
    "as the 6B tower": InternVitConfig(
        40, 96, 4, heads=5, image_size=48, patch_size=8, feature_layers=4,
        norm="rms_norm", attention_bias=False, qk_norm_eps=1e-6,
    ),
    "an earlier layer's features, one head, pixels that no patch sees": InternVitConfig(
        24, 20, 3, heads=1, image_size=30, patch_size=7, feature_layers=2,
        norm_eps=1e-3, attention_bias=False, activation="gelu_pytorch_tanh",
    ),
    "norms of queries and keys beside layer norms": InternVitConfig(
        24, 64, 2, heads=4, image_size=24, patch_size=6, feature_layers=2, qk_norm_eps=1e-6, image_mean=(0.5, 0.1, 0.2),
    ),
}  # fmt: skip


def theirs_of(config: InternVitConfig) -> InternVLVisionModel:
    """A tower of transformers with random weights, none of which is near a value that changes nothing."""
    torch.manual_seed(0)
    model = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=[config.image_size] * 2,
            patch_size=[config.patch_size] * 2,
            norm_type=config.norm,
            layer_norm_eps=config.norm_eps,
            attention_bias=config.attention_bias,
            use_qk_norm=config.qk_norm_eps is not None,
            hidden_act=config.activation,
        )
    )
    for name, value in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        width = value[0].numel() ** -0.5 if value.ndim in (2, 4) else 0.4
        value.data = centre + width * torch.randn(value.shape)
    return model.eval()


def ours_of(config: InternVitConfig, theirs: InternVLVisionModel, **settings) -> InternVit:
    """This project's tower with the same weights, named here once more and not by the project's table."""
    stored = {name: value.numpy() for name, value in theirs.state_dict().items()}
    with use_mesh(MESH):
        tower = InternVit(config, rngs=nnx.Rngs(0), **{"remat": "none", "attention": "xla"} | KINDS | settings)

    def stacked(name: str) -> np.ndarray:
        return np.stack([stored[f"encoder.layer.{i}.{name}"] for i in range(config.layers)])

    layers = tower.layers
    kernel = stored["embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0)
    tower.patch.kernel[...] = kernel.reshape(-1, config.hidden_size)
    tower.patch.bias[...] = stored["embeddings.patch_embeddings.projection.bias"]
    tower.class_token[...] = stored["embeddings.cls_token"][0]
    tower.positions.embedding[...] = stored["embeddings.position_embeddings"][0]
    attention = layers.attention
    linears = {layers.up: "mlp.fc1", layers.down: "mlp.fc2", attention.o: "attention.projection_layer"}
    linears |= {getattr(attention, n): f"attention.{n}_proj" for n in "qkv"}
    for module, name in linears.items():
        module.kernel[...] = stacked(f"{name}.weight").swapaxes(1, 2)
        if module.bias is not None:
            module.bias[...] = stacked(f"{name}.bias")
    norms = {layers.attention_norm: "layernorm_before", layers.mlp_norm: "layernorm_after"}
    if config.qk_norm_eps is not None:
        norms |= {attention.q_norm: "attention.q_norm", attention.k_norm: "attention.k_norm"}
    for module, name in norms.items():
        module.scale[...] = stacked(f"{name}.weight")
        if isinstance(module, nnx.LayerNorm):
            module.bias[...] = stacked(f"{name}.bias")
    layers.attention_scale[...], layers.mlp_scale[...] = stacked("lambda_1"), stacked("lambda_2")
    return tower


def tiles_of(config: InternVitConfig, count: int = 3) -> np.ndarray:
    shape = (count, config.image_size, config.image_size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def normalised(tiles: np.ndarray, config: InternVitConfig):
    pixels = (tiles.astype(np.float32) * np.float32(config.rescale) - np.float32(config.image_mean)) / np.float32(
        config.image_std
    )
    return torch.tensor(pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.long
def test_patch_features_are_transformers(name):
    config = SHAPES[name]
    theirs, tiles = theirs_of(config), tiles_of(config)
    seen = config.patches_per_side * config.patch_size
    with torch.no_grad():
        states = theirs(normalised(tiles[:, :seen, :seen], config), output_hidden_states=True).hidden_states
    expected = states[config.feature_layers].numpy()[:, 1:]
    found = jax.jit(ours_of(config, theirs))(tiles)
    assert np.abs(expected).max() > 1 and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_layer_scale_and_every_other_weight_count():
    """No parameter could be left out unseen: the test above changes with each of them."""
    config = SHAPES["as the 6B tower"]
    tower, tiles = ours_of(config, theirs_of(config)), tiles_of(config, 1)
    graph, state = nnx.split(tower)
    run = jax.jit(lambda state: nnx.merge(graph, state)(tiles))
    before = run(state)
    for path, variable in nnx.to_flat_state(state):
        noise = 0.1 * np.random.default_rng(0).normal(size=variable.shape).astype(np.float32)
        other = nnx.from_flat_state(
            [(p, v.replace(v.get_value() + noise) if p == path else v) for p, v in nnx.to_flat_state(state)]
        )
        if path != ("layers", "attention", "k", "bias"):  # the softmax takes it away
            assert np.abs(run(other) - before).max() > 1e-3, path


def test_the_kernels_of_the_tpu_and_recomputation_change_nothing():
    config = SHAPES["as the 300M tower"]
    theirs, tiles = theirs_of(config), tiles_of(config, 2)
    expected = ours_of(config, theirs)(tiles)
    found = ours_of(config, theirs, attention="pallas", remat="full")(tiles)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_in_bfloat16_features_are_bfloat16():
    config = SHAPES["as the 6B tower"]
    with use_mesh(MESH):
        kinds = dict(dtype=jnp.bfloat16, param_dtype=jnp.float32)
        tower = InternVit(config, rngs=nnx.Rngs(0), remat="none", attention="xla", **kinds)
    assert jax.eval_shape(tower, jax.ShapeDtypeStruct((2, 48, 48, 3), jnp.uint8)).dtype == jnp.bfloat16


def test_the_kernel_takes_the_slots_of_a_448_tile_as_one_block_and_leaves_other_rows_as_they_are():
    """1024 patches and the class token. Text has an order: its blocks follow another rule, whatever its length."""
    assert block_size(1025, 1, causal=False) == 1152
    assert block_size(729, 1, causal=False) == 768  # LLaVA-OneVision's tiles of 384
    assert {block_size(slots, 7, causal=True) for slots in range(1025, 1153)} <= {128, 256, 512}


# Projector


@pytest.mark.parametrize("merge", [2, 4])
def test_the_channels_of_a_block_are_in_raster_order(merge):
    """Every feature names its patch (row, column)."""
    side = 8
    grid = np.stack(np.mgrid[:side, :side], -1).reshape(1, side * side, 2)
    found = np.asarray(merge_patches(jnp.asarray(grid), side, merge))[0].reshape(-1, merge, merge, 2)
    for number, block in enumerate(found):
        top, left = merge * (number // (side // merge)), merge * (number % (side // merge))
        np.testing.assert_array_equal(block, np.stack(np.mgrid[top : top + merge, left : left + merge], -1))


@pytest.mark.parametrize(("ratio", "activation"), [(0.5, "gelu"), (0.5, "gelu_pytorch_tanh"), (0.25, "gelu")])
@pytest.mark.long
def test_visual_tokens_are_transformers(ratio, activation):
    """Pixel shuffle (`ps_version` v2) and projector together."""
    tower = dataclasses.replace(SHAPES["as the 300M tower"], image_size=56, patch_size=7)
    text = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    model = InternVLModel(
        InternVLConfig(
            vision_config=theirs_of(tower).config,
            text_config=Qwen2Config(**text, num_key_value_heads=1, vocab_size=8),
            downsample_ratio=ratio,
            projector_hidden_act=activation,
        )
    ).eval()
    merge = round(1 / ratio)
    with use_mesh(MESH):
        projector = MergeProjector(36, 32, side=8, merge=merge, activation=activation, rngs=nnx.Rngs(0), **KINDS)
    with torch.no_grad():
        stored = model.multi_modal_projector
        for value in stored.parameters():
            value.add_(0.1 * torch.randn(value.shape))
        projector.norm.scale[...] = stored.layer_norm.weight.numpy()
        projector.norm.bias[...] = stored.layer_norm.bias.numpy()
        for ours, theirs in ((projector.up, stored.linear_1), (projector.down, stored.linear_2)):
            ours.kernel[...], ours.bias[...] = theirs.weight.numpy().T, theirs.bias.numpy()
        out = model.get_image_features(normalised(tiles_of(tower), tower))
        features = out.last_hidden_state.numpy()[:, 1:]
    found = projector(jnp.asarray(features))
    np.testing.assert_allclose(found, out.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
