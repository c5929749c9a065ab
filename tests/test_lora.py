"""LoRA: applied equals merged and equals the formula, only A and B are trained, files, and what is refused."""

import functools
import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.stable_diffusion_peers import randomize
from zoo import lora
from zoo.errors import UserError
from zoo.fast_paths import inference_function, use_fast_paths
from zoo.generation.seq2seq import Seq2SeqGenerator
from zoo.io import model_files
from zoo.models.stable_diffusion import denoiser, text_encoder
from zoo.models.transformer import transformer
from zoo.training.losses import LabelSmoothingCrossEntropy
from zoo.training.optimizers import TorchAdam

ON_PYTORCH = pytest.mark.slow("tensorflow", "jax")  # where alone a training has fast paths for these layers
NUMPY = keras.ops.convert_to_numpy
RNG = np.random.default_rng(0)
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "has_attention": (True, False), "num_heads": 2}
UNET |= {"cross_attention_dim": 12, "norm_num_groups": 4}
TEXT = {"vocabulary_size": 30, "num_layers": 1, "hidden_dim": 12, "intermediate_dim": 20, "num_heads": 2}
TRANSFORMER = {"vocabulary_size": 30, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24, "num_heads": 2}
IDS = RNG.integers(3, 30, (2, 2, 7)).astype("int32")
MODELS = {
    "transformer": (transformer, TRANSFORMER | {"dropout": 0.1}, list(IDS)),
    "text_encoder": (text_encoder.text_encoder, TEXT, IDS[0]),
    "denoiser": (
        denoiser.denoiser,
        UNET,
        [
            RNG.normal(size=(2, 4, 4, 4)).astype("float32"),
            np.array([3.0, 500.0], "float32"),
            RNG.normal(size=(2, 5, 12)).astype("float32"),
        ],
    ),
}


def make(kind, seed=0):
    """A model with random weights."""
    build, config, _ = MODELS[kind]
    return randomize(build(**config), seed)


@functools.cache
def base_weights(kind):
    return [np.array(NUMPY(weight)) for weight in make(kind).weights]


def outputs(model):
    _, _, inputs = MODELS[model.name]
    return np.array(NUMPY(model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs), training=False)))


def lora_layers(model):
    return {layer.name: layer for layer in model.layers if getattr(layer, "lora_enabled", False)}


def draw(model, seed=1):
    """Random A and B whose product is of the size of the weights; {layer: (A, B)} in Keras' layout."""
    rng, drawn = np.random.default_rng(seed), {}
    for name, layer in lora_layers(model).items():
        a, b = (rng.normal(size=part.shape).astype("float32") for part in (layer.lora_kernel_a, layer.lora_kernel_b))
        a /= np.sqrt(np.prod(a.shape[:-1]))
        b *= 0.3  # alpha / r is 3 below
        layer.lora_kernel_a.assign(a), layer.lora_kernel_b.assign(b)
        drawn[name] = a, b
    return drawn


def largest(difference, of):
    return np.abs(difference).max() / np.abs(of).max()


def check_weights(model, kind, products):
    """The weights are those of the base plus the products, by NumPy."""
    expected = base_weights(kind)
    for weight, before in zip(model.weights, expected, strict=True):
        layer = weight.path.split("/")[0]
        added = products[layer] if weight.name == "kernel" and layer in products else 0
        np.testing.assert_allclose(NUMPY(weight), before + added, atol=1e-5, err_msg=weight.path)


# ----------------------------------------------------------------------------------------------- applied and merged


@pytest.mark.parametrize(
    "kind, targets",
    [("transformer", lora.ATTENTION_PROJECTIONS), ("text_encoder", lora.ATTENTION_PROJECTIONS), ("denoiser", ".*")],
)
def test_merged_equals_applied_and_the_formula(kind, targets):
    """W + alpha/r A B, on dense layers and, of the denoiser, on convolutions."""
    model = make(kind)
    before = outputs(model)
    names = lora.add_lora(model, rank=2, alpha=6, targets=targets)
    np.testing.assert_array_equal(outputs(model), before)  # B is zero
    drawn = draw(model)
    assert list(drawn) == names
    if targets == ".*":
        assert {a.ndim for a, _ in drawn.values()} == {2, 4}
    applied = outputs(model)
    assert largest(applied - before, before) > 0.1
    lora.merge_lora(model)
    assert largest(outputs(model) - applied, applied) < 1e-5
    check_weights(model, kind, {name: 3 * np.tensordot(a, b, axes=1) for name, (a, b) in drawn.items()})
    assert not lora_layers(model)
    assert len(model.trainable_variables) == len(make(kind).trainable_variables)


@pytest.mark.parametrize("kind", MODELS)
def test_compiled_functions_made_before_see_the_adapter_and_its_training(kind):
    model = make(kind)
    _, _, inputs = MODELS[kind]
    function = inference_function(model)
    before = [NUMPY(function(inputs)) for _ in range(2)][1]  # the second call is the traced one on PyTorch
    lora.add_lora(model, rank=2, targets=".*" if kind == "denoiser" else lora.ATTENTION_PROJECTIONS)
    seen = []
    for seed in (1, 2):
        draw(model, seed)
        seen += [NUMPY(function(inputs)) for _ in range(2)]
        assert largest(seen[-2] - outputs(model), seen[-2]) < 1e-5 and largest(seen[-1] - seen[-2], seen[-1]) < 1e-5
    assert largest(seen[0] - before, before) > 0.1 and largest(seen[0] - seen[-1], before) > 0.1
    lora.merge_lora(model)
    assert largest(NUMPY(function(inputs)) - seen[-1], before) < 1e-5
    assert largest(NUMPY(inference_function(model)(inputs)) - seen[-1], before) < 1e-5


def test_generators_made_before_see_the_adapter():
    """Beam search by TorchTransformer on PyTorch, by compiled loops on the other backends."""
    model, plain = make("transformer"), make("transformer")
    rules = {"start_id": 1, "end_id": 2}
    sources, options = [[5, 9, 4], [7, 20, 21, 8, 3]], {"num_beams": 3, "max_length": 12, "with_scores": True}
    generator = Seq2SeqGenerator(model, **rules)
    (before, _) = generator.generate(sources, **options)
    lora.add_lora(model, rank=2, targets=".*")
    drawn = draw(model)
    for name, (a, b) in drawn.items():
        kernel = plain.get_layer(name).kernel
        kernel.assign(NUMPY(kernel) + a @ b)
    expected, expected_scores = Seq2SeqGenerator(plain, **rules).generate(sources, **options)
    found, scores = generator.generate(sources, **options)
    assert found == expected != before
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- training


def batch():
    source, target = IDS
    return [source, target], np.roll(target, -1, axis=1)


def compiled(model, fast):
    model.compile(optimizer=TorchAdam(1e-2), loss=LabelSmoothingCrossEntropy(0.1))
    if fast:
        use_fast_paths(model)
    return model


@pytest.mark.parametrize("fast", ["before", *(pytest.param(when, marks=ON_PYTORCH) for when in ("after", "never"))])
def test_only_a_and_b_are_trained(fast):
    """By `fit`, with the fast paths put in before the adapter, after it or never: the same numbers."""
    model = make("transformer")
    if fast == "before":
        use_fast_paths(model)
    names = lora.add_lora(model, rank=3, seed=5)
    compiled(model, fast == "after")
    sizes = [int(np.prod(variable.shape)) for variable in model.trainable_variables]
    assert sum(sizes) == sum(3 * (16 + 16) for _ in names)
    before = {variable.path: np.array(NUMPY(variable)) for variable in model.weights}
    x, y = batch()
    for dropout in (layer for layer in model.layers if "dropout" in layer.name):
        dropout.rate = 0.0
    losses = model.fit(x, y, epochs=4, batch_size=2, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    changed = {path for path, value in before.items() if np.abs(NUMPY(by_path(model)[path]) - value).max()}
    assert changed == {f"{name}/lora_kernel_{part}" for name in names for part in "ab"}
    # two moments for each trained number, and the counter and the learning rate
    state = sum(int(np.prod(variable.shape)) for variable in model.optimizer.variables)
    assert 2 * sum(sizes) <= state <= 2 * sum(sizes) + 2
    TRAINED[fast] = losses, [NUMPY(variable) for variable in model.trainable_variables]
    (first_losses, first), (these_losses, these) = TRAINED.get("before", TRAINED[fast]), TRAINED[fast]
    np.testing.assert_allclose(these_losses, first_losses, rtol=1e-5)
    assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(first, these, strict=True))


TRAINED = {}


def by_path(model):
    return {variable.path: variable for variable in model.weights}


def test_fit_goes_on_after_merging():
    """What Keras compiled for the adapter is forgotten."""
    model = compiled(make("transformer"), fast=False)
    x, y = batch()
    before = model.predict(x, verbose=0)
    lora.add_lora(model, rank=2)
    draw(model)
    applied = model.predict(x, verbose=0)
    assert largest(applied - before, before) > 0.1
    lora.merge_lora(model)
    assert largest(model.predict(x, verbose=0) - applied, applied) < 1e-5
    compiled(model, fast=False).fit(x, y, verbose=0)
    changed = [np.abs(NUMPY(w) - b).max() > 0 for w, b in zip(model.weights, base_weights("transformer"), strict=True)]
    assert all(changed)


def test_initial_a_is_the_same_on_every_backend():
    model = make("transformer")
    first, *_ = lora.add_lora(model, rank=2, seed=3)
    expected = np.random.default_rng(3).uniform(-0.25, 0.25, (16, 2)).astype("float32")  # 1/√16
    np.testing.assert_array_equal(NUMPY(model.get_layer(first).lora_kernel_a), expected)


# ----------------------------------------------------------------------------------------------------------- files


@functools.cache
def saved(kind, folder, seed=1, targets=lora.ATTENTION_PROJECTIONS, alpha=6):
    """A file, and {layer: scaled product} in Keras' layout."""
    model = make(kind)
    lora.add_lora(model, rank=2, alpha=alpha, targets=targets)
    drawn = draw(model, seed)
    path = folder / f"{kind}-{seed}-{alpha}-{len(targets)}.safetensors"
    lora.save_lora(model, path)
    return path, {name: alpha / 2 * np.tensordot(a, b, axes=1) for name, (a, b) in drawn.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.mark.parametrize(
    "kind, targets",
    [("transformer", lora.ATTENTION_PROJECTIONS), ("text_encoder", lora.ATTENTION_PROJECTIONS), ("denoiser", ".*")],
)
def test_a_file_added_to_its_base(kind, targets, folder):
    path, products = saved(kind, folder, targets=targets)
    model = make(kind)
    lora.load_lora(model, path, scale=0.5)
    check_weights(model, kind, {name: product / 2 for name, product in products.items()})
    run_folder = path.with_suffix("")  # of a run, which holds lora.safetensors
    run_folder.mkdir()
    shutil.copy(path, run_folder / "lora.safetensors")
    kept = make(kind)
    lora.load_lora(kept, run_folder, scale=0.5, merge=False)
    assert largest(outputs(kept) - outputs(model), outputs(model)) < 1e-5
    assert {id(v) for v in kept.trainable_variables} == {
        id(v) for layer in lora_layers(kept).values() for v in (layer.lora_kernel_a, layer.lora_kernel_b)
    }


def test_several_at_once(folder):
    (one, first), (other, second) = saved("transformer", folder), saved("transformer", folder, seed=2, alpha=3)
    model = make("transformer")
    lora.load_lora(model, [one, other], [0.5, -2.0])
    check_weights(model, "transformer", {name: 0.5 * first[name] - 2 * second[name] for name in first})


def test_the_layout_of_a_file(folder):
    """peft's: A (r, d_in) and B (d_out, r) by the path of the layer, and what tells the base."""
    path, products = saved("transformer", folder)
    tensors = load_file(path)
    assert tensors.keys() == {f"{name}.lora_{part}.weight" for name in products for part in "AB"}
    for name, product in products.items():
        found = 3 * (tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]).T
        np.testing.assert_allclose(found, product, atol=1e-6)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["r"], config["lora_alpha"]) == (2, 6) and set(config["target_modules"]) == set(products)
    assert json.loads(metadata["zoo"])["model"]["name"] == "transformer"
    size = path.stat().st_size
    assert size < 4 * sum(array.size for array in tensors.values()) + 8000


def test_ranks_and_alphas_may_differ_between_layers(tmp_path):
    model = make("transformer")
    names = lora.add_lora(model, rank=2, alpha=4, targets=".*_query")
    lora.save_lora(model, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[f"{names[0]}.lora_A.weight"] = RNG.normal(size=(5, 16)).astype("float32")
    tensors[f"{names[0]}.lora_B.weight"] = RNG.normal(size=(16, 5)).astype("float32")
    config = {"r": 2, "lora_alpha": 4.0, "rank_pattern": {names[0]: 5}, "alpha_pattern": {names[0]: 10.0}}
    save_file(tensors, tmp_path / "b.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    loaded = make("transformer")
    lora.load_lora(loaded, tmp_path / "b.safetensors", merge=False)
    assert [(layer.lora_rank, layer.lora_alpha) for layer in lora_layers(loaded).values()] == [(5, 10), (2, 4), (2, 4)]
    lora.save_lora(loaded, tmp_path / "c.safetensors")
    again = make("transformer")
    lora.load_lora(again, tmp_path / "c.safetensors", merge=False)
    assert largest(outputs(again) - outputs(loaded), outputs(loaded)) < 1e-6
    assert largest(outputs(again) - outputs(make("transformer")), outputs(again)) > 0.1


def test_a_loaded_model_has_the_paths_of_a_built_one(folder, tmp_path):
    path, products = saved("transformer", folder)
    model_files.save_model(make("transformer"), tmp_path / "model.keras")
    model = model_files.load_model(tmp_path / "model.keras")
    lora.load_lora(model, path)
    check_weights(model, "transformer", products)
    half = model_files.load_model(tmp_path / "model.keras", dtype="bfloat16")
    lora.load_lora(half, path)  # rounded, it is the same base
    kernel = NUMPY(keras.ops.cast(half.get_layer("encoder_0_self_attention_query").kernel, "float32"))
    expected = NUMPY(model.get_layer("encoder_0_self_attention_query").kernel)
    assert largest(kernel - expected, expected) < 0.02


def test_a_keras_file_holds_no_lora(tmp_path):
    """Keras loads A and B as zeros from one, so that it never trains again."""
    model = make("transformer")
    lora.add_lora(model)
    draw(model)
    applied = outputs(model)
    with pytest.raises(UserError, match="transformer has LoRA layers, .*merge_lora.*save_lora"):
        model_files.save_model(model, tmp_path / "model.keras")
    assert not list(tmp_path.iterdir())
    lora.merge_lora(model)
    model_files.save_model(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert b"lora" not in archive.read("config.json")
    assert largest(outputs(model_files.load_model(tmp_path / "model.keras")) - applied, applied) < 1e-5


# ---------------------------------------------------------------------------------------------------- what is refused


def refused(words, function, *args, **options):
    with pytest.raises(UserError, match=words) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") <= 1


@pytest.mark.once
def test_wrong_arguments(tmp_path):
    model = make("transformer")
    for rank in (0, -1, 2.5, True):
        refused(f"rank of a LoRA must be an integer from 1 up, got {rank}", lora.add_lora, model, rank)
    refused("alpha of a LoRA must be a number above 0, got 0", lora.add_lora, model, alpha=0)
    refused(r"targets is '\(', which is no regular expression", lora.add_lora, model, targets="(")
    refused(
        r"targets 'encoder_0_iner' matches no layer of transformer: its layers are encoder_0_self_attention_query.*"
        r"Did you mean 'encoder_0_inner'",
        lora.add_lora,
        model,
        targets="encoder_0_iner",
    )
    refused("transformer has no LoRA: add it", lora.merge_lora, model)
    refused("transformer has no LoRA: add it", lora.save_lora, model, tmp_path / "a.safetensors")
    refused("saved as a safetensors file, got a.keras: name it a.safetensors", lora.save_lora, model, "a.keras")
    assert len(model.trainable_variables) == len(make("transformer").trainable_variables)  # nothing was changed
    lora.add_lora(model)
    refused("encoder_0_self_attention_query of transformer has LoRA already", lora.add_lora, model)
    model.get_layer("encoder_0_inner").bias.trainable = True
    refused(
        r"beside its LoRA are trainable \(encoder_0_inner/bias\)", lora.save_lora, model, tmp_path / "a.safetensors"
    )
    whole = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()], name="relus")
    refused("relus: it has no layer that can be adapted", lora.add_lora, whole, targets=".*")


@pytest.mark.once
def test_files_of_other_models(folder):
    path, _ = saved("transformer", folder)
    refused("No such|There is no file at", lora.load_lora, make("transformer"), folder / "missing.safetensors")
    refused(
        "is a LoRA of another model: it was trained on transformer with the weights .* load the model it was",
        lora.load_lora,
        make("transformer", seed=9),
        path,
    )
    lora.load_lora(make("transformer", seed=9), path, check_base=False)
    deeper = transformer(**TRANSFORMER | {"num_layers": 2})
    refused("another model: it was trained on transformer, whose structure differs", lora.load_lora, deeper, path)
    refused(
        r"another model: it adapts decoder_0_cross_attention_key, which denoiser does not have",
        lora.load_lora,
        make("denoiser"),
        path,
    )
    wider = denoiser.denoiser(**UNET | {"cross_attention_dim": 16})
    other, _ = saved("denoiser", folder)
    refused(r"have the shapes \(2, 12\) and \(8, 2\), where \(r, 16\) and \(8, r\) were", lora.load_lora, wider, other)
    refused("2 LoRA files and 1 scales", lora.load_lora, make("transformer"), [path, path], [1.0])
    refused("scale of a LoRA must be a number, got nan", lora.load_lora, make("transformer"), path, float("nan"))
    refused("One LoRA can be kept apart", lora.load_lora, make("transformer"), [path, path], merge=False)


def spoil(path, target, *, metadata=None, **changes):
    """A copy of a file with other tensors; None takes one away."""
    with safe_open(path, framework="np") as file:
        kept = file.metadata()
    tensors = load_file(path) | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, target, kept | (metadata or {}))
    return target


KEY = "encoder_0_self_attention_query.lora_"


@pytest.mark.once
def test_damaged_files(folder, tmp_path):
    path, _ = saved("transformer", folder)
    model, target = make("transformer"), tmp_path / "spoilt.safetensors"
    target.write_bytes(path.read_bytes()[:-200])
    refused("spoilt.safetensors is damaged", lora.load_lora, model, target)
    for words, changes in {
        r"is damaged: it has no B \(lora_B or lora_up\) of encoder_0_self_attention_query": {f"{KEY}B.weight": None},
        r"have the shapes \(0, 16\) and \(16, 0\)": {
            f"{KEY}A.weight": np.zeros((0, 16), "float32"),
            f"{KEY}B.weight": np.zeros((16, 0), "float32"),
        },
        "lora_A.weight holds values that are no numbers": {f"{KEY}A.weight": np.full((2, 16), np.nan, "float32")},
        "lora_A.weight holds int32": {f"{KEY}A.weight": np.zeros((2, 16), "int32")},
        "holds other, which is no part of a LoRA": {"other": np.zeros(2, "float32")},
    }.items():
        refused(words, lora.load_lora, model, spoil(path, target, **changes))
    for words, metadata in {
        "is not valid JSON": {"lora_adapter_metadata": "{"},
        "says use_dora is True, where only False is supported": {"lora_adapter_metadata": '{"use_dora": true}'},
        "says lora_alpha is 'x', where a number": {"lora_adapter_metadata": '{"lora_alpha": "x"}'},
        "does not say structure": {"zoo": '{"model": {"name": "x"}}'},
    }.items():
        refused(words, lora.load_lora, model, spoil(path, target, metadata=metadata))
    check_weights(model, "transformer", {})


@pytest.mark.once
@pytest.mark.parametrize(
    "key, kind",
    [
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "LoCon with a Tucker decomposition"),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "OFT"),  # these five as lycoris-lora 4.1 writes them
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "GLoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", r"\(IA\)3"),
        ("lora_unet_mid_block_attentions_0_proj_in.diff", "differences of whole weights"),
        ("lora_unet_mid_block_resnets_0_norm1.w_norm", "normalization layers beside LoRA"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "LoRA of Stable Diffusion XL"),
        ("text_encoder_2.encoder.layers.0.mlp.fc1.lora_A.weight", "LoRA of Stable Diffusion XL"),
    ],
)
def test_other_kinds_are_refused_by_name(key, kind, tmp_path):
    save_file({key: np.zeros((2, 2), "float32")}, tmp_path / "a.safetensors")
    refused(
        f"holds {kind} .*{key}.*, where LoRA was expected", lora.load_lora, make("denoiser"), tmp_path / "a.safetensors"
    )


@pytest.mark.once
def test_file_and_scale_of_a_command():
    for text, expected in {
        "a.safetensors": ("a.safetensors", 1.0),
        "a.safetensors:0.8": ("a.safetensors", 0.8),
        "C:\\a.safetensors": ("C:\\a.safetensors", 1.0),
        "C:\\a.safetensors:-1": ("C:\\a.safetensors", -1.0),
    }.items():
        assert lora.parse_file_and_scale(text) == expected
