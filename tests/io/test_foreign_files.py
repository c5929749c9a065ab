"""Files of another kind: each is called what it is, by whatever it is named, with what to do."""

import io
import zipfile

import keras
import numpy as np
import pytest

from zoo import cli
from zoo.errors import UserError
from zoo.io.foreign_files import explain_foreign_file
from zoo.io.model_files import load_model, save_model
from zoo.io.tensor_files import TensorFile

pytestmark = pytest.mark.once
# As in the repositories of Hugging Face and GitHub; git-lfs/docs/spec.md
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def small_model():
    inputs = keras.Input((3,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


def content(kind, tmp_path):
    """The bytes of a real file of a kind, written by its own library."""
    torch = pytest.importorskip("torch")
    buffer, path = io.BytesIO(), tmp_path / "made"
    if kind == "hdf5 model":
        small_model().save(path.with_suffix(".h5"))
        return path.with_suffix(".h5").read_bytes()
    if kind == "hdf5 weights":
        small_model().save_weights(path.with_suffix(".weights.h5"))
        return path.with_suffix(".weights.h5").read_bytes()
    if kind == "npz":
        np.savez(buffer, a=np.zeros(3))
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), buffer)
    elif kind == "torch":
        torch.save(torch.nn.Linear(3, 2).state_dict(), buffer)
    elif kind == "safetensors":
        return pytest.importorskip("safetensors.numpy").save({"a": np.zeros(3, "float32")})
    elif kind == "keras":
        save_model(small_model(), path.with_suffix(".keras"))
        return path.with_suffix(".keras").read_bytes()
    return {"git lfs": POINTER, "web page": b"\n<!DOCTYPE html><html>", "empty": b""}.get(kind) or buffer.getvalue()


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind, words",
    [
        ("git lfs", "is a pointer of Git LFS, .*`git lfs pull`"),
        ("web page", "is a web page"),
        ("empty", "is empty: fetch it again"),
        ("hdf5 model", r"is a model in HDF5, .*compile=False\).save\('.*\.keras'\)"),
        ("hdf5 weights", "holds weights without the model, in HDF5: .*build the model"),
        ("npz", r"is an archive of NumPy arrays \(.npz\)"),
        ("torchscript", r"is a TorchScript program, .*torch.jit.load\('.*'\).state_dict\(\)"),
        ("torch", "is a file of PyTorch, .*zoo convert --help"),
        ("safetensors", "is a safetensors file, .*zoo convert --help"),
        ("keras", "is a Keras model"),
    ],
)
def test_each_kind_is_called_what_it_is(kind, words, tmp_path):
    written = content(kind, tmp_path)
    readers = {"file.keras": load_model, "file.pt": TensorFile, "file.safetensors": TensorFile}
    right = {"keras": "file.keras", "torch": "file.pt", "safetensors": "file.safetensors"}.get(kind)
    for name, read in readers.items():
        (tmp_path / name).write_bytes(written)
        if name == right:
            read(tmp_path / name)
            continue
        with pytest.raises(UserError, match=words) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name, written", [("old.h5", "old.keras"), ("old.keras", "old-converted.keras")])
def test_the_line_that_converts_an_hdf5_model_is_right(name, written, tmp_path):
    model = small_model()
    model.save(tmp_path / "old.h5")
    if name == "old.keras":
        (tmp_path / name).write_bytes((tmp_path / "old.h5").read_bytes())
    said = explain_foreign_file(tmp_path / name, expected=["keras"])
    assert ("rename it to old.h5" in said) == (name == "old.keras")
    exec(said.partition("convert it once, ")[2].rstrip("."), {"keras": keras})
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(*(one.predict_on_batch(x) for one in (load_model(tmp_path / written), model)))


@pytest.mark.parametrize("written", [b"PK\x03\x04cut", b"anything else", b"\x80\x02}q\x00."])
def test_what_is_not_known_is_left_to_the_reader(written, tmp_path):
    (tmp_path / "file.keras").write_bytes(written)
    assert explain_foreign_file(tmp_path / "file.keras", expected=["keras"]) is None
    with pytest.raises(UserError, match="is not a whole .keras file"):
        load_model(tmp_path / "file.keras")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.keras", "w") as archive:
        archive.writestr("picture.png", b"")
    assert explain_foreign_file(tmp_path / "file.keras", expected=["keras"]) is None


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_commands_say_it_too(tmp_path):
    small_model().save(tmp_path / "old.h5")
    with pytest.raises(UserError, match="is a model in HDF5, .*convert it once"):
        cli.run(["summary", str(tmp_path / "old.h5")])
