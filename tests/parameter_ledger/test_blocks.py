"""Folding: which rows a block holds, that nothing is lost or counted twice, and a table of 80 columns."""

import keras
import pytest
from keras import layers

import zoo
from zoo.compat.keras import skip_weight_init
from zoo.parameter_ledger.blocks import BLOCK, BLOCKS, MIN_ROWS, fold
from zoo.parameter_ledger.ledger import ledger


def fresh(name):
    """An architecture whose weights are never drawn: only their shapes count here."""
    with skip_weight_init():
        return zoo.create_model(name)


def outline(rows):
    """[(name, kind, parameters)] of headings, and of rows with parameters outside of blocks."""
    lines, hidden = [], None
    for row in rows:
        if hidden is not None and row.depth > hidden:
            continue
        hidden = row.depth if row.kind in (BLOCK, BLOCKS) else None
        if row.parameters and not (row.group and hidden is None):
            lines.append((row.name, row.kind if hidden is not None else "layer", row.parameters))
    return lines


def check_folded(book):
    """Every row once, each after its sources, which are the same; headings hold what their blocks count."""
    rows = fold(book.rows)
    leaves, before = [row for row in rows if not row.group], [row for row in book.rows if not row.group]
    assert sorted(map(id, (row.layer for row in leaves))) == sorted(map(id, (row.layer for row in before)))
    assert sum(row.counted_parameters for row in leaves) == book.parameters
    seen = {}
    for index, row in enumerate(rows):
        assert all(source < index and not rows[source].group for source in row.sources)
        if not row.group:
            seen.setdefault((id(row.layer), row.inputs), []).append([rows[s].path for s in row.sources])
    for row in before:
        assert [book.rows[s].path for s in row.sources] in seen[id(row.layer), row.inputs]
    for index, row in enumerate(rows):
        if row.kind in (BLOCK, BLOCKS):
            end = next((i for i in range(index + 1, len(rows)) if rows[i].depth <= row.depth), len(rows))
            assert row.parameters == sum(inner.counted_parameters for inner in rows[index:end] if not inner.group)
    return rows


def test_a_transformer_is_its_encoder_and_decoder_blocks():
    book = ledger(fresh("transformer_multi30k_de_en"), input_shape=(16,))
    attention, feed_forward, norm = 4 * (256 + 1) * 256, (256 + 1) * 1024 + (1024 + 1) * 256, 2 * 256
    assert outline(check_folded(book)) == [
        ("embedding", "layer", 6000 * 256),
        ("embedding", "layer", 6000 * 256),
        ("encoder_0…2", BLOCKS, 3 * (attention + feed_forward + 2 * norm)),
        ("encoder_norm", "layer", norm),
        ("decoder_0…2", BLOCKS, 3 * (2 * attention + feed_forward + 3 * norm)),
        ("decoder_norm", "layer", norm),
        ("embedding", "layer", 6000 * 256),
    ]
    text = book.to_text(80)
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) < 24
    assert "encoder_0…2  ×3" in text and "3 × 789,760" in text and "--full" in text
    full = book.to_text(80, full=True)
    assert len(full.splitlines()) > 200 and "(256 + 1)·1024" in full


def test_the_denoiser_of_stable_diffusion_is_a_line_a_resolution():
    book = ledger(fresh("sd15_denoiser"))
    names = [(name, kind) for name, kind, _ in outline(check_folded(book))]
    down, middle, up = (
        [f"down_{i}" for i in range(4)],
        ["mid_resnet_0", "mid_attention_0", "mid_resnet_1"],
        [f"up_{i}" for i in range(4)],
    )
    assert [name for name, kind in names if kind == BLOCK] == down + middle + up
    assert [name for name, kind in names if kind == "layer"] == [
        *("time_inner", "time_outer", "conv_in", "norm_out", "conv_out")
    ]
    assert max(map(len, book.to_text(80).splitlines())) <= 80


# What a reader of these papers calls a stage or a block; equal ones in a row are one line.
APPLICATIONS = {
    "ResNet50": ["conv2_block1", "conv2_block2…3", "conv3_block1", "conv3_block2…4", "conv4_block2…6"],
    "MobileNetV2": ["block_1", "block_4…5", "block_7…9", "block_16"],
    "EfficientNetB0": ["block1a", "block2b", "block4b…4c", "block6b…6d"],
    "DenseNet121": ["conv2", "pool2", "conv5"],
    "InceptionV3": ["mixed0", "mixed5…6", "mixed10"],
    "Xception": ["block4", "block5…12", "block13"],
    "ConvNeXtTiny": ["convnext_tiny_stage_0", "convnext_tiny_downsampling_block_0", "convnext_tiny_stage_3"],
}


@pytest.mark.once
@pytest.mark.parametrize("name", APPLICATIONS)
def test_models_of_keras_applications(name):
    with skip_weight_init():
        model = getattr(keras.applications, name)(weights=None)
    book = ledger(model)
    lines = outline(check_folded(book))
    headings = [heading for heading, kind, _ in lines if kind != "layer"]
    assert [heading for heading in headings if heading in APPLICATIONS[name]] == APPLICATIONS[name]
    text = book.to_text(80).splitlines()
    assert max(map(len, text)) <= 80 and len(text) < 40


def chain(blocks, joined):
    """Blocks without a number: two dense layers and a sum, or a nested model."""
    start = tensor = keras.Input((4,))
    for _ in range(blocks):
        inside = [layers.Dense(4, activation="relu"), layers.Dense(4)]
        if joined:
            tensor = keras.Sequential([keras.Input((4,)), *inside])(tensor)
        else:
            tensor = layers.Add()([inside[1](inside[0](tensor)), tensor])
    return keras.Model(start, tensor, name="chain")


@pytest.mark.parametrize("joined", [False, True])
def test_blocks_without_numbers_are_found_by_the_graph(joined):
    rows = check_folded(ledger(chain(30, joined)))
    ((_, kind, parameters),) = outline(rows)
    assert kind == BLOCKS and rows[1].note == "×30" and parameters == 30 * 2 * 20
    assert [row.kind for row in rows[2:5]] == [BLOCK, "Dense", "Dense"]


def test_a_shallow_model_stays_as_it_is():
    book = ledger(chain(MIN_ROWS // 3 - 1, joined=False))
    assert fold(book.rows) == book.rows and book.to_text(80) == book.to_text(80, full=True)


def test_blocks_that_share_a_name_far_apart_are_no_block():
    x = start = keras.Input((4,))
    for i in range(30):
        x = layers.Dense(4, name=f"dense_1_at_{i}" if i in (0, 29) else f"layer{i:03}x")(x)
        x = layers.Activation("relu", name=f"after{i:03}x")(x)
    assert not any(row.kind == BLOCK for row in fold(ledger(keras.Model(start, x)).rows))


def test_equal_blocks_of_another_name_are_not_joined():
    x = start = keras.Input((4,))
    for name in [*(f"low_{i}" for i in range(8)), *(f"high_{i}" for i in range(8))]:
        for part in ("a", "b", "c"):
            x = layers.Dense(4, name=f"{name}_{part}")(x)
    assert [line[0] for line in outline(fold(ledger(keras.Model(start, x)).rows))] == ["low_0…7", "high_0…7"]
