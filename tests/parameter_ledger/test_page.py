import base64
import html.parser
import io
import re

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import zoo
from zoo.compat.keras import skip_weight_init
from zoo.models.cnn import cnn
from zoo.parameter_ledger import page as ledger_page
from zoo.parameter_ledger import page_style
from zoo.parameter_ledger.blocks import BLOCK, fold
from zoo.parameter_ledger.filter_images import filter_image
from zoo.parameter_ledger.ledger import LedgerRow

VOID = {"meta", "wbr", "input", "img"}


class Page(html.parser.HTMLParser):
    """Reads a page: checks that tags are balanced, and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.text = {}  # of each row by its id, without those nested in it
        self.rows = [""]
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)
            if tag == "li" and "id" in dict(attributes):
                self.rows.append(dict(attributes)["id"])
            elif tag == "li":
                self.rows.append(self.rows[-1])

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else, at {self.getpos()}"
        if tag == "li":
            self.rows.pop()

    def handle_data(self, data):
        self.text[self.rows[-1]] = self.text.get(self.rows[-1], "") + data

    def all(self, name):
        return [value for attribute, value in self.attributes if attribute == name]

    def pictures(self):
        """Pixels of the pictures in the page."""
        files = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in self.all("src")]
        pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
        assert [str(picture.shape[1]) for picture in pictures] == self.all("width")
        return pictures


def nested():
    """Nested and shared models, branches, all kinds of formulas, frozen weights, an open size, awkward names."""
    words = keras.Input((None,), dtype="int32", name="words")
    table = layers.Embedding(50, 8, name="table")
    state = layers.LSTM(6, name="lstm")(layers.Bidirectional(layers.GRU(4, return_sequences=True))(table(words)))
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name='<i>"conv" & co')(image)
    inside = keras.Input((8, 8, 4))
    y = layers.DepthwiseConv2D(3, padding="same", name="each")(inside)
    y = layers.Add(name="sum")([layers.BatchNormalization(name="norm")(y), inside])
    block = keras.Model(inside, y, name="block")
    x = layers.Concatenate(name="both")([block(x), block(block(x))])
    x = layers.Reshape((64, 8), name="places")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(64, 5), bias_axes="d", name="product")(x)
    x = keras.ops.mean(x, axis=1)
    frozen = layers.Dense(6, name="frozen", trainable=False)(x)
    return keras.Model([words, image], layers.Add(name="end")([frozen, state]), name="a<b> & c")


def chain(blocks):
    """A long model with a line past every block: 3 layers each."""
    start = tensor = keras.Input((4,))
    for _ in range(blocks):
        x = layers.Dense(4)(layers.Dense(4, activation="relu")(tensor))
        tensor = layers.Add()([x, tensor])
    return keras.Model(start, tensor, name="chain")


MODELS = {"cnn": lambda: cnn(num_classes=10, image_size=8), "nested": nested, "chain": lambda: chain(5)}


@pytest.fixture(scope="module", params=MODELS)
def read(request):
    """(ledger, page as text, page as read) of a model."""
    keras.utils.set_random_seed(0)
    book = zoo.ledger(MODELS[request.param]())
    text = book.to_html()
    return book, text, Page(text)


@pytest.mark.once
def test_page_is_whole(read):
    book, text, page = read
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert {"title", "main", "header", "section", "h1", "h2", "details", "summary"} <= set(page.tags)
    assert page.tags.count("details") == len(book.rows) == len([name for name in page.all("id") if name[0] == "r"])


@pytest.mark.once
def test_page_stands_alone(read):
    _, text, page = read
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert all(source.startswith("data:image/png;base64,") for source in page.all("src"))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {target for target in page.all("href") + ["#" + name for name in page.all("for")]} <= {f"#{i}" for i in ids}
    assert set(page.all("aria-labelledby")) <= set(ids)


@pytest.mark.once
def test_every_figure_of_the_ledger_is_on_the_page(read):
    book, _, page = read
    assert f"{book.parameters:,}" in page.text[""] and f"{book.trainable:,}" in page.text[""]
    for index, row in enumerate(book.rows):
        text = page.text[f"r{index}"].replace("\xa0", " ")
        assert row.name in text and (row.group or row.kind in text)
        if row.group:
            continue
        assert not row.parameters or f"{row.counted_parameters:,}" in text
        assert row.note in text
        for formula in (*row.formulas, *row.mac_formulas):
            assert formula.part in text and formula.substituted.replace("None", "?") in text
            assert ("= ?" if formula.value is None else f"{formula.value:,}") in text
        for source in row.sources:
            assert book.rows[source].path in text


@pytest.mark.once
def test_a_deep_model_is_folded_into_blocks():
    """Blocks are shut, hold all their layers, and are the parts of the bar; equal ones are in a box of their own."""
    with skip_weight_init():
        book = zoo.ledger(zoo.create_model("transformer_multi30k_de_en"), input_shape=(16,))
    text = book.to_html()
    page, rows = Page(text), fold(book.rows)
    assert page.tags.count("details") == len(rows) > len(book.rows)
    assert text.count('<details class="group block den">') == 2 + 6 and "<details open" not in text
    for index, row in enumerate(rows):
        assert row.name in page.text[f"r{index}"]
    names = [f"encoder_{i}" for i in range(3)]
    assert [row.name for row in rows if row.kind == BLOCK][:3] == names
    assert "3 equal blocks" in page.text[f"r{[row.name for row in rows].index('encoder_0…2')}"]
    bar = text.partition("Where the parameters are")[2].partition("</section>")[0]
    assert re.findall(r'<a href="#r\d+">([^<]*)</a>( ×3)?', bar) == [
        *(("embedding", ""), ("encoder_0…2", " ×3"), ("encoder_norm", ""), ("decoder_0…2", " ×3"), ("decoder_norm", ""))
    ]
    assert "smaller" not in bar and "33.5%" in bar and "44.7%" in bar
    assert "1,536,000 + 2,369,280 + 512 + 3,160,320 + 512 = <b>7,066,624</b>" in bar


@pytest.mark.once
def test_names_are_escaped():
    text = zoo.ledger(nested()).to_html()
    page = Page(text)
    assert "<h1>a&lt;b&gt; &amp; c</h1>" in text
    assert '<i>"conv"' not in text and any('<i>"conv" & co' in row for row in page.text.values())


@pytest.mark.once
def test_letters_are_explained(read):
    book, _, page = read
    for index, row in enumerate(book.rows):
        for formula in () if row.kind == "EinsumDense" else (*row.formulas, *row.mac_formulas):
            for letter in re.findall(r"[A-Za-z_]\w*", formula.symbolic):
                assert ledger_page.LEGEND[letter] in page.text[f"r{index}"]


@pytest.mark.once
def test_size_is_bounded():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((48, 48, 3)), layers.Conv2D(64, 7), layers.Flatten(), layers.Dense(10)])
    assert len(zoo.ledger(model).to_html().encode()) < 60_000
    book = zoo.ledger(chain(100))
    assert len(book.rows) == 301 and len(book.to_html().encode()) < 20_000 + 2_000 * 301


@pytest.mark.once
def test_pictures_are_limited():
    x = image = keras.Input((8, 8, 3))
    for _ in range(ledger_page._MAX_FILTER_IMAGES + 2):
        x = layers.Conv2D(3, 1)(layers.Conv2D(3, 3, padding="same")(x))
    text = zoo.ledger(keras.Model(image, x)).to_html()
    assert len(Page(text).pictures()) == ledger_page._MAX_FILTER_IMAGES
    assert f"The filters of the first {ledger_page._MAX_FILTER_IMAGES} convolutions are shown" in text


def conv_page(layer, channels):
    """(kernel of zeros, the layer, a function that gives the picture in its page)."""
    model = keras.Sequential([keras.Input((8, 8, channels)), layer])
    kernel = np.zeros(layer.kernel.shape, "float32")

    def picture():
        layer.kernel.assign(kernel)
        text = zoo.ledger(model).to_html()
        pixels, scale = Page(text).pictures()[0], max(3, 30 // max(layer.kernel_size))
        small = pixels[::scale, ::scale]
        np.testing.assert_array_equal(pixels, small.repeat(scale, axis=0).repeat(scale, axis=1))
        return small, text

    return kernel, picture


def weight(pixels, tile, place, size=3):
    """RGBA of one weight: (row, column) of a tile in the grid, (row, column) in the tile."""
    return tuple(pixels[tile[0] * (size + 1) + place[0], tile[1] * (size + 1) + place[1]].tolist())


def test_filters_of_three_channels_are_colours():
    kernel, picture = conv_page(layers.Conv2D(9, 3), 3)
    kernel[0, 1, 2, 0], kernel[2, 2, 0, 8], kernel[1, 1, :, 8] = 0.5, -0.5, 0.25
    pixels, text = picture()
    assert pixels.shape == (7, 31, 4)
    assert weight(pixels, (0, 0), (0, 1)) == (128, 128, 255, 255)  # blue +, the others 0
    assert weight(pixels, (0, 0), (0, 0)) == (128, 128, 128, 255)
    assert weight(pixels, (1, 0), (2, 2)) == (0, 128, 128, 255)  # red −
    assert weight(pixels, (1, 0), (1, 1)) == (191, 191, 191, 255)
    assert not pixels[3].any() and not pixels[4:, 4:].any()  # between tiles, and after the last: transparent
    assert "9 filters of 3·3 weights" in text and "full brightness +0.5, black −0.5" in text


def test_filters_of_one_channel_are_grey():
    kernel, picture = conv_page(layers.Conv2D(2, (3, 1)), 1)
    kernel[0, 0, 0, 1] = -2
    pixels, _ = picture()
    assert pixels[0, 2].tolist() == [0, 0, 0, 255] and pixels[1, 2].tolist() == [128, 128, 128, 255]


def test_slices_of_many_channels_are_a_grid_of_filters_and_channels():
    kernel, picture = conv_page(layers.Conv2D(12, 3), 6)
    kernel[1, 2, 4, 3], kernel[0, 0, 5, 7], kernel[0, 0, 5, 11] = -0.5, 0.25, 0.5  # the last is not among the first 8
    pixels, text = picture()
    assert pixels.shape == (31, 23, 4)
    assert weight(pixels, (3, 4), (1, 2)) == (33, 102, 172, 255)
    assert weight(pixels, (3, 4), (1, 1)) == (255, 255, 255, 255)
    assert weight(pixels, (7, 5), (0, 0)) == (216, 140, 149, 255)  # halfway from white to red
    assert "first 8 of 12 filters" in text and "first 6 of 6 channels" in text


def test_filters_of_a_depthwise_convolution():
    kernel, picture = conv_page(layers.DepthwiseConv2D(5, padding="same", depth_multiplier=2), 2)
    kernel[4, 0, 1, 0] = 1
    pixels, text = picture()
    assert pixels.shape == (5, 23, 4)
    assert weight(pixels, (0, 2), (4, 0), size=5) == (178, 24, 43, 255)
    assert "4 filters of 5·5 weights, 2 for each channel" in text


def test_a_kernel_of_zeros_and_one_that_is_not_finite_are_drawn():
    layer = layers.Conv2D(1, 3)
    layer.build((None, 8, 8, 1))
    for value in (0.0, np.nan):
        layer.kernel.assign(np.full(layer.kernel.shape, value, "float32"))
        pixels, _ = filter_image(layer)
        assert (pixels[..., :3] == 128).all()


@pytest.mark.once
def test_lines_lead_from_sources_to_takers_and_do_not_overlap():
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = [LedgerRow(path="0", kind="InputLayer")]
        for index in range(1, 40):
            group = bool(rng.random() < 0.1)
            reach = [source for source in range(max(0, index - 12), index) if not rows[source].group]
            sources = () if group else tuple(rng.choice(reach, min(len(reach), 2), replace=False).tolist())
            rows.append(LedgerRow(path=str(index), kind="Add", group=group, sources=sources))
        connections = ledger_page._Connections(rows)
        drawn = {(source, taker) for source, (_, takers) in connections.lanes.items() for taker in takers}
        undrawn = set()
        for index, row in enumerate(rows):
            above = max((other for other in range(index) if not rows[other].group), default=None)
            for source in row.sources:
                if source == above:
                    assert index in connections.follows
                elif (source, index) not in drawn:
                    undrawn.add(source)
        assert len(undrawn) == connections.undrawn
        for gap in range(1, len(rows)):
            beside = [lane for source, (lane, takers) in connections.lanes.items() if source < gap <= takers[-1]]
            assert len(beside) == len(set(beside)) and all(lane < ledger_page._MAX_LANES for lane in beside)
            assert not undrawn or len(beside) <= ledger_page._MAX_LANES


@pytest.mark.once
def test_a_line_passes_begins_and_ends():
    rows = [LedgerRow(path=str(i), kind="Add", sources=(i - 1,) if i else ()) for i in range(4)]
    rows.append(LedgerRow(path="4", kind="Add", sources=(3, 0)))
    connections = ledger_page._Connections(rows)
    assert connections.lanes == {0: (0, [4])} and connections.undrawn == 0 and connections.follows == {1, 2, 3, 4}
    begin, past, end = (connections.svg(index, index, 0) for index in (0, 2, 4))
    x, right = connections.gutter - 14, connections.gutter
    assert f'd="M{right} {ledger_page._EXIT}H{x + 7}q-7 0 -7 7V9999"' in begin and "head" not in begin
    assert f'd="M{x} 0V9999"' in past
    assert f"H{right - 3}" in end and "head" in end and "9999" not in end
    assert connections.svg(0, 4, 0) == ""  # as one box, nothing leaves it


@pytest.mark.once
def test_colours_have_contrast():
    """WCAG 2.2: text 4.5, what is drawn 3, on the page and on the boxes."""

    def luminance(colour):
        colour = colour * 2 if len(colour) == 3 else colour
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    themes = re.findall(r":root\{([^}]*)\}", page_style.STYLE)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = dict(re.findall(r"--([\w]+):#(\w+)", theme))
        for name in colours.keys() - {"bg", "card", "line"}:
            for ground in ("bg", "card"):
                dark, light = sorted(luminance(colours[key]) for key in (name, ground))
                wanted = 4.5 if name in ("ink", "soft", "link") else 3
                assert (light + 0.05) / (dark + 0.05) >= wanted, (name, ground)
